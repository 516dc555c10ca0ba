"""Store of observations: hourly Parquet files on any fsspec file system."""
