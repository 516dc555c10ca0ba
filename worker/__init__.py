"""What runs in the background: ingest, quality control, assimilation, cycling, outputs."""
