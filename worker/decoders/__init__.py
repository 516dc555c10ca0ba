"""One report family per file."""
