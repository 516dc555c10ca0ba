"""One check per file, in the order they run."""
