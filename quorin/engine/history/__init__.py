"""The history in Parquet: files, storage, reads as of a time."""
