"""Read, check, store and export observations."""
