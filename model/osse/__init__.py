"""Observing-system simulation experiments: a synthetic network that observes a simulated truth."""
