"""Writes: Feast's rows, tables and frames on their way to the log."""
