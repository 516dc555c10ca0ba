"""Make the training data, train autoencoder and denoiser, and export their bundle."""
