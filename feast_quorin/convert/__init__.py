"""Conversions between Feast's values, times and keys and the engine's columns and ids."""
