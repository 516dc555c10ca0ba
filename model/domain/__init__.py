"""Concepts of the domain: variables, grids, windows, observations, errors; without torch."""
