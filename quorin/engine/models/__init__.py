"""Rows as the matrix that a model takes."""
