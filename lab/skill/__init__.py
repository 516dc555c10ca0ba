"""Score checkpoints against a simulated truth and against withheld soundings."""
