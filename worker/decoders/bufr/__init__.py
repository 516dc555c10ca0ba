"""BUFR: one report family per file."""
