"""How many single entries a producer may append to a Redis stream without the script that checks its limit."""

from __future__ import annotations

import time
from collections.abc import Iterator

from quorin.engine.backend import keys

_MAX_ENTRIES = 64
_SECONDS = 0.1
_KEPT_FREE = 64 * _MAX_ENTRIES
MAX_SINGLE_SEQUENCE = keys.MAX_SEQUENCE // 2
"""Past this sequence number only the script appends: it moves on to the next millisecond before the sequence runs
out."""


class Allowance:
    """How many entries may be appended one by one, for a moment, without checking how full the log is.

    Nothing is allowed when the log is nearly full, so single entries stop exactly at its limit. To pass the limit,
    other producers would have to append thousands of entries, the margin kept free, in the tenth of a second for which
    an allowance lasts. Only batched appends can, and they leave the log over its limit by no more than the allowance.
    """

    def __reduce__(self) -> tuple[type[Allowance], tuple[()]]:
        """An allowance is not valid in another process, whose clock may differ."""
        return Allowance, ()

    def __init__(self) -> None:
        self._granted: tuple[int | None, float, Iterator[int]] = (None, 0.0, iter(()))

    def grant(self, length: int, max_entries: int | None, last_position: int, asked_at: float) -> None:
        """At the monotonic time ``asked_at`` (seconds) the log had ``length`` entries, the last at this position."""
        has_room = max_entries is None or max_entries - length >= _KEPT_FREE
        allowed = _MAX_ENTRIES if has_room and last_position & keys.MAX_SEQUENCE <= MAX_SINGLE_SEQUENCE else 0
        self._granted = (max_entries, asked_at + _SECONDS, iter(range(allowed)))

    def covers_one(self, max_entries: int | None) -> bool:
        """Use up one entry of the allowance; False if none is left. Threads never use the same one."""
        granted_for, until, left = self._granted
        return granted_for == max_entries and next(left, None) is not None and time.monotonic() < until

    def end(self) -> None:
        """Allow nothing until the script has checked again."""
        self._granted = (None, 0.0, iter(()))
