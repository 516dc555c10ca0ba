"""Decide what is kept for how long, and delete the rest."""
