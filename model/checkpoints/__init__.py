"""Cards, loading and importing of weights."""
