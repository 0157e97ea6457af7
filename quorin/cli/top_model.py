"""What ``quorin top`` shows, computed from two observations of a deployment, without a terminal."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from quorin.cli.inspect import NOT_READABLE, lag_rows, lag_time, newest
from quorin.cli.repository import Names
from quorin.engine.arrays import UInt64s
from quorin.engine.counting import counters
from quorin.engine.format.abi import (
    FIRST_BUCKET,
    TIME_BUCKETS,
    W_BATCH_ROWS,
    W_BATCH_TIMES,
    W_MISSING,
    W_READ_TIMES,
    W_READS,
)
from quorin.engine.words import ago, count, counted, duration, size

if TYPE_CHECKING:
    from quorin.engine.ops.observe import Deployment, Observer, SegmentState


@dataclass(frozen=True, slots=True)
class Look:
    """A deployment and the counters at one moment (monotonic, in seconds)."""

    seen: Deployment
    totals: dict[str, UInt64s]
    at: float


@dataclass(frozen=True, slots=True)
class Line:
    """One segment: what its schema is called, its cells and sort keys, in the order of :data:`COLUMNS`."""

    name: str
    state: SegmentState
    cells: tuple[str, ...]
    keys: tuple[float | str, ...]


COLUMNS = {
    "schema": "the schema or feature view",
    "lag": "how long the first row of the log that the segment lacks has been waiting",
    "newest": "the age of the newest event",
    "readers": "processes that have the segment mapped",
    "dead": "dead letters since this machine started",
    "reads/s": "rows read per second, one by one and in batches",
    "p50": "half of the reads of one row take less",
    "p99": "99 of 100 reads of one row take less",
    "batch p50": "the same of reads of many rows, as Feast reads them",
    "batch p99": "the same of reads of many rows",
    "writes/s": "rows applied per second",
    "rows": "entities with a row",
    "load": "rows, live and deleted, relative to the capacity at which the segment grows",
    "bytes": "the segment's memory",
    "missing/s": "ids without a row that were read per second",
    "lag rows": "rows that the segment lacks",
    "gen": "the segment's generation",
}
"""What each column shows, those that matter most first: a terminal of 80 columns shows the first six."""

_BARS = "▁▂▃▄▅▆▇█"
_KEPT_LOOKS = 120


@dataclass(slots=True)
class History:
    """The last rates of a whole deployment, and how long ago its nodes were up to date, newest last."""

    reads: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_LOOKS))
    writes: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_LOOKS))
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_LOOKS))

    def add(self, before: Look, now: Look) -> None:
        """Add what two observations say."""
        reads, writes, age = _rates(before, now)
        self.reads.append(reads)
        self.writes.append(writes)
        self.ages.append(age or 0.0)

    def text(self, width: int) -> str:
        """All three as one line of at most ``width`` columns."""
        bars = max(4, min(_KEPT_LOOKS, (width - 68) // 3))
        parts = (("reads/s", self.reads, count), ("writes/s", self.writes, count), ("up to date", self.ages, ago))
        return "   ".join(
            f"{name} {sparkline(list(values)[-bars:])} {shown(values[-1])}" for name, values, shown in parts if values
        )


def sparkline(values: list[float]) -> str:
    """Values as bars from nothing up to the largest."""
    most = max(values, default=0) or 1
    return "".join(_BARS[round(max(0.0, value) / most * (len(_BARS) - 1))] for value in values)


def look(observer: Observer) -> Look:
    """Observe once. :raises ConnectionFailedError: if the control plane cannot be reached."""
    return Look(observer.observe(), counters.totals(), time.monotonic())


def lines(before: Look, now: Look, *, raw: bool = False) -> list[Line]:
    """One line per segment, with the rates between the two observations."""
    names = names_of(now, raw=raw)
    return [_line(state, names.schema(state.schema_name), before, now) for state in now.seen.segments]


def names_of(now: Look, *, raw: bool = False) -> Names:
    """What the schemas of an observation are called."""
    return Names({state.schema_name: state.schema for state in now.seen.segments if state.schema}, raw=raw)


def summary(before: Look, now: Look) -> str:
    """The whole deployment in one line."""
    read, written, age = _rates(before, now)
    alive = counted(sum(node.is_alive for node in now.seen.nodes), "node")
    roles = ", ".join(sorted({f"{report.role} {report.process.pid}" for report in now.seen.processes})) or "no consumer"
    return (
        f"{now.seen.address}  |  {count(read)} rows read/s  |  {count(written)} rows written/s  |  "
        f"{alive}{'' if age is None else f', up to date {ago(age)}'}  |  "
        f"{counted(now.seen.log_entries, 'log entry')}  |  {counted(now.seen.dead_letters, 'dead letter')}  |  {roles}"
    )


def _rates(before: Look, now: Look) -> tuple[float, float, float | None]:
    """Rows read and written per second, and how long ago (s) all live nodes were known to be up to date, None if no
    node has reported it.
    """
    seconds = max(now.at - before.at, 1e-9)
    names = [state.schema_name for state in now.seen.segments]
    read = sum(_grown(before, now, name, W_READS, W_BATCH_ROWS) for name in names) / seconds
    written = sum(_grown(before, now, name, counters.word("rows_applied")) for name in names) / seconds
    ages = [node.lag_seconds for node in now.seen.nodes if node.is_alive and node.lag_seconds is not None]
    return read, written, max(ages, default=None)


def percentile(times: list[int], share: float) -> float | None:
    """The time in seconds below which a share of the samples lies (the middle of its bucket); None without any."""
    total = sum(times)
    if not total:
        return None
    bucket = next(number for number, so_far in enumerate(accumulate(times)) if so_far >= share * total)
    octave: float = 2.0 ** (FIRST_BUCKET + bucket // 2)
    return octave * (1.75 if bucket % 2 else 1.25) / 1e9


def _line(state: SegmentState, shown: str, before: Look, now: Look) -> Line:
    name, seconds = state.schema_name, max(now.at - before.at, 1e-9)
    if state.stats is None:
        cells = (shown, NOT_READABLE) + ("",) * (len(COLUMNS) - 2)
        return Line(shown, state, cells, (shown,) + (-1.0,) * (len(COLUMNS) - 1))
    stats = state.stats
    read = _grown(before, now, name, W_READS, W_BATCH_ROWS) / seconds
    missing = _grown(before, now, name, W_MISSING) / seconds
    p50, p99 = _percentiles(before, now, name, W_READ_TIMES)
    batch_p50, batch_p99 = _percentiles(before, now, name, W_BATCH_TIMES)
    written = _grown(before, now, name, counters.word("rows_applied")) / seconds
    dead = _total(now, name, counters.word("dead_letters"))
    age = -1.0
    if state.events is not None and state.events.newest_ns is not None:
        age = (time.time_ns() - state.events.newest_ns) / 1e9
    cells = (
        shown, lag_time(state), newest(state), str(len(state.readers)), count(dead), count(read),
        duration(p50), duration(p99), duration(batch_p50), duration(batch_p99), count(written), count(stats["rows"]),
        f"{stats['load']:.0%}", size(stats["bytes"]), count(missing), lag_rows(state), str(stats["generation"]),
    )  # fmt: skip
    keys = (
        shown, state.lag.seconds if state.lag else -1.0, age, len(state.readers), dead, read,
        p50 or -1.0, p99 or -1.0, batch_p50 or -1.0, batch_p99 or -1.0, written, stats["rows"],
        stats["load"], stats["bytes"], missing, state.lag.rows if state.lag else -1.0, stats["generation"],
    )  # fmt: skip
    return Line(shown, state, cells, keys)


def _percentiles(before: Look, now: Look, name: str, first: int) -> tuple[float | None, float | None]:
    """The median and the 99th percentile of the times that are counted from a word on."""
    times = [_grown(before, now, name, first + bucket) for bucket in range(TIME_BUCKETS)]
    return percentile(times, 0.5), percentile(times, 0.99)


def _grown(before: Look, now: Look, name: str, *offsets: int) -> int:
    return sum(max(0, _total(now, name, offset) - _total(before, name, offset)) for offset in offsets)


def _total(at: Look, name: str, offset: int) -> int:
    words = at.totals.get(name)
    return 0 if words is None else int(words[offset])
