"""Vector retrieval and its filters."""
