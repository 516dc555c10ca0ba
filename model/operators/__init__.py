"""Observe states: the operators H, one module per family."""
