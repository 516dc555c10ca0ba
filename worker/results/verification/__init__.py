"""Score results against observations, store the scores as time series, and check control limits."""
