"""What ``quorin top`` shows, computed from two observations of a deployment, without a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from quorin.cli.inspect import lag_rows, lag_time, newest
from quorin.engine.arrays import UInt64s
from quorin.engine.counting import counters
from quorin.engine.format.abi import FIRST_BUCKET, TIME_BUCKETS, W_BATCH_ROWS, W_MISSING, W_READ_TIMES, W_READS
from quorin.engine.words import count, counted, duration, size

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
    """One segment: its cells and sort keys, in the order of :data:`COLUMNS`."""

    schema_name: str
    state: SegmentState
    cells: tuple[str, ...]
    keys: tuple[float | str, ...]


COLUMNS = (
    "schema", "rows", "load", "bytes", "rows read/s", "missing/s", "read p50", "read p99", "writes/s", "lag rows",
    "lag", "newest", "readers", "gen", "dead",
)  # fmt: skip


def look(observer: Observer) -> Look:
    """Observe once. :raises ConnectionFailedError: if the control plane cannot be reached."""
    return Look(observer.observe(), counters.totals(), time.monotonic())


def lines(before: Look, now: Look) -> list[Line]:
    """One line per segment, with the rates between the two observations."""
    return [_line(state, before, now) for state in now.seen.segments]


def summary(before: Look, now: Look) -> str:
    """The whole deployment in one line."""
    seconds = max(now.at - before.at, 1e-9)
    names = [state.schema_name for state in now.seen.segments]
    read = sum(_grown(before, now, name, W_READS, W_BATCH_ROWS) for name in names) / seconds
    written = sum(_grown(before, now, name, counters.word("rows_applied")) for name in names) / seconds
    lags = [node.lag_seconds for node in now.seen.nodes if node.is_alive and node.lag_seconds is not None]
    nodes = counted(sum(node.is_alive for node in now.seen.nodes), "node") + (
        f", lag {duration(max(lags))}" if lags else ""
    )
    roles = ", ".join(sorted({f"{report.role} {report.process.pid}" for report in now.seen.processes})) or "no consumer"
    return (
        f"{now.seen.address}  |  {count(read)} rows read/s  |  {count(written)} rows written/s  |  "
        f"{nodes}  |  {counted(now.seen.log_entries, 'log entry')}  |  "
        f"{counted(now.seen.dead_letters, 'dead letter')}  |  {roles}"
    )


def percentile(times: list[int], share: float) -> float | None:
    """The time in seconds below which a share of the samples lies (the middle of its bucket); None without any."""
    total = sum(times)
    if not total:
        return None
    bucket = next(number for number, so_far in enumerate(accumulate(times)) if so_far >= share * total)
    octave: float = 2.0 ** (FIRST_BUCKET + bucket // 2)
    return octave * (1.75 if bucket % 2 else 1.25) / 1e9


def _line(state: SegmentState, before: Look, now: Look) -> Line:
    name, seconds = state.schema_name, max(now.at - before.at, 1e-9)
    if state.stats is None:
        cells = (name, state.problem or "") + ("",) * (len(COLUMNS) - 2)
        return Line(name, state, cells, (name,) + (-1.0,) * (len(COLUMNS) - 1))
    stats = state.stats
    read = _grown(before, now, name, W_READS, W_BATCH_ROWS) / seconds
    missing = _grown(before, now, name, W_MISSING) / seconds
    times = [_grown(before, now, name, W_READ_TIMES + bucket) for bucket in range(TIME_BUCKETS)]
    p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
    written = _grown(before, now, name, counters.word("rows_applied")) / seconds
    dead = _total(now, name, counters.word("dead_letters"))
    age = -1.0
    if state.events is not None and state.events.newest_ns is not None:
        age = (time.time_ns() - state.events.newest_ns) / 1e9
    cells = (
        name, count(stats["rows"]), f"{stats['load']:.0%}", size(stats["bytes"]), count(read), count(missing),
        duration(p50), duration(p99), count(written), lag_rows(state), lag_time(state), newest(state),
        str(len(state.readers)), str(stats["generation"]), count(dead),
    )  # fmt: skip
    keys = (
        name, stats["rows"], stats["load"], stats["bytes"], read, missing, p50 or -1.0, p99 or -1.0, written,
        state.lag.rows if state.lag else -1.0, state.lag.seconds if state.lag else -1.0, age, len(state.readers),
        stats["generation"], dead,
    )  # fmt: skip
    return Line(name, state, cells, keys)


def _grown(before: Look, now: Look, name: str, *offsets: int) -> int:
    return sum(max(0, _total(now, name, offset) - _total(before, name, offset)) for offset in offsets)


def _total(at: Look, name: str, offset: int) -> int:
    words = at.totals.get(name)
    return 0 if words is None else int(words[offset])
