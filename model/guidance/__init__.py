"""Ways to condition a denoiser on observations, one method per file."""
