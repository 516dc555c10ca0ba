"""Comparing this implementation with recorded outputs of the public one, one file per family."""
