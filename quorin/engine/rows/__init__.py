"""Rows on their way in: one value, a column, a batch, a packed row."""
