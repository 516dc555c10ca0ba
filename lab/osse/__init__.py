"""Simulate observations of a known truth, and score assimilation against it and baselines."""
