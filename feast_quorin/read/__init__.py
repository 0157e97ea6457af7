"""Reads: compiled requests, and Feast's generic path."""
