"""Back up and restore the records of an installation, and rebuild the content of Redis from disk."""
