"""Layers only; they know nothing of weather."""
