"""Job kinds and their specifications."""
