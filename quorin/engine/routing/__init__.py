"""Reads of rows that other nodes hold, over HTTP. Internal."""
