"""The science: from observations as tensors to an ensemble of global trajectories."""
