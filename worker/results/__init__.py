"""Describe, publish, index, verify and delete the results of jobs."""
