"""Score results against observations, keep the scores as time series, and watch their limits."""
