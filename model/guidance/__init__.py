"""One guidance method per file."""
