"""The served log: what requests were answered with, in a ring of each process and then in Parquet files."""
