"""Serve the published analyses as a SpatioTemporal Asset Catalog (STAC)."""
