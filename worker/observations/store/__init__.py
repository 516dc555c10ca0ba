"""Store of observations: hourly Parquet files in a folder or in a bucket."""
