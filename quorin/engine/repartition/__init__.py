"""Growing to twice as many partitions: close the logs, begin their successors, and carry nodes over."""
