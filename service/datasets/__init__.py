"""Published analyses as data sets over HTTP: zarr, OPeNDAP and OGC EDR by xpublish."""
