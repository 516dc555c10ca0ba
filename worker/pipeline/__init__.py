"""Run jobs step by step: ingest an upload, gather observations, assimilate, write results."""
