"""Write results as files: CF NetCDF, Zarr, GRIB 2, feedback tables and pictures."""
