"""The straight walks: ingest, gather, assimilate."""
