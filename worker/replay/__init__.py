"""Recompute a published result from its manifest, and report whether it is identical."""
