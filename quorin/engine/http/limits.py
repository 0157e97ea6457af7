"""What a client may send, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds. A request beyond one is refused with a 4xx and its connection closed.

    ``rows``, ``columns`` and ``features`` are those of one request for features: its entities, what it gives of each
    (join keys and request data), and what it asks for; ``values`` are the rows times the values of each row in one
    reply about segments. ``request_seconds`` is the longest time from the first byte of a request to its last,
    ``idle_seconds`` the longest silence before a request. ``connections`` are those of one worker; further ones are
    answered with 503.
    """

    head_bytes: int = 64 * 1024
    body_bytes: int = 64 * 1024 * 1024
    rows: int = 1_000_000
    columns: int = 1_000
    features: int = 10_000
    values: int = 50_000_000
    request_seconds: float = 30.0
    idle_seconds: int = 60
    connections: int = 10_000

    def excess(self, *, rows: int, columns: int, features: int) -> str | None:
        """What a request for features has more of than allowed; None if nothing."""
        counts = (("rows", rows, self.rows), ("columns", columns, self.columns), ("features", features, self.features))
        return next((f"expected at most {most} {of}, got {count}" for of, count, most in counts if count > most), None)
