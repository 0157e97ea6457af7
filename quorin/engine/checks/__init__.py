"""Checks of a generation before it is served: declared (``declared.py``), measured, and reported."""
