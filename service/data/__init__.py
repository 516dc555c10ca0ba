"""Serve published analyses as data sets: zarr and OGC EDR, by xpublish."""
