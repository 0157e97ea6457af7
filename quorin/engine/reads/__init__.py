"""What reads take and return: ids, buffers, columns, single rows."""
