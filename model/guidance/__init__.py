"""Condition the denoiser on observations: guidance methods and their linear algebra."""
