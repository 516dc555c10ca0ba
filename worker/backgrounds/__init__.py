"""Where a background comes from."""
