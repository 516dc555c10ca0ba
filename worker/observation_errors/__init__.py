"""Observation errors by network, variable and level."""
