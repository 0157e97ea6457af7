"""The consumer's parts: what it decides, which segments it owns, and how entries are applied."""
