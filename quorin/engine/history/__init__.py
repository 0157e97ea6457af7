"""The history in Parquet: files, storage, point-in-time reads."""
