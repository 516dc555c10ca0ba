"""The gateway: observations in over HTTP, jobs, analyses out."""
