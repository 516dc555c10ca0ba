"""Prepare inputs of other weather models from analyses, and name what analyses lack for them."""
