"""Segment files: mapped, locked, checked, grown and replaced."""
