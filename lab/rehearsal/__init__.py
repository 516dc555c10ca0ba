"""Rehearse a simulated day of cycles on the real stack, and audit it."""
