"""Observation operators H, one per file."""
