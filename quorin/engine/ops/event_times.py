"""The event times of the rows of segments, scanned in a small share of the time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from quorin.shm import Segment

SCAN_SHARE = 0.01
"""The maximum share of time to spend on scanning rows for their event times, and again on finding readers."""

_SCAN_SLOTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Events:
    """The event times of the oldest and the newest row, in ns since the epoch; None without rows."""

    oldest_ns: int | None
    newest_ns: int | None


class EventScans:
    """The event times of segments, scanned in at most one percent of the time and kept meanwhile."""

    def __init__(self) -> None:
        self._scanned: dict[str, _Scanned] = {}

    def of(self, schema_name: str, segment: Segment) -> Events:
        """The event times of a schema's segment, which may be those of its last scan."""
        cached = self._scanned.get(schema_name)
        if cached is None or time.monotonic() >= cached.next_at:
            event_times(segment, slot_count=0)  # Loads the kernel, which takes longer than most scans.
            started = time.monotonic()
            events = event_times(segment)
            now = time.monotonic()
            cached = self._scanned[schema_name] = _Scanned(events, now + (now - started) / SCAN_SHARE)
        return cached.events

    def last(self, schema_name: str) -> Events | None:
        """The event times that the last scan found; None before the first."""
        cached = self._scanned.get(schema_name)
        return None if cached is None else cached.events


@dataclass(frozen=True, slots=True)
class _Scanned:
    events: Events
    next_at: float


def event_times(segment: Segment, slot_count: int | None = None) -> Events:
    """The oldest and the newest event time of a segment's rows, or of those in its first slots. Without the GIL."""
    from quorin.engine import kernels

    view = segment.current_view()
    result = np.array([np.iinfo(np.int64).max, np.iinfo(np.int64).min], np.int64)
    slots = view.layout.slot_count if slot_count is None else slot_count
    for first in range(0, max(slots, 1), _SCAN_SLOTS):
        last = min(first + _SCAN_SLOTS, slots)
        kernels.event_times(view.descriptor, first, last, result)
    oldest, newest = int(result[0]), int(result[1])
    return Events(None, None) if oldest > newest else Events(oldest, newest)


def entities_after(segment: Segment, event_time_ns: int, limit: int) -> tuple[list[tuple[int, str]], int]:
    """Rows with a later event time, and how many there are: of the newest ``limit`` the event time and the entity.

    Reads the ids of all rows, which takes a second for some millions.
    """
    import pyarrow.compute as pc

    from quorin.assembly import scan

    found: list[tuple[int, str]] = []
    count = 0
    for batch in scan(segment, fields=[]):
        late = batch.filter(pc.greater(batch.column("event_time_ns"), event_time_ns))
        count += len(late)
        pairs = zip(late.column("event_time_ns").to_pylist(), late.column("entity_id").to_pylist(), strict=True)
        found = nlargest(limit, [*found, *pairs])
    return found, count
