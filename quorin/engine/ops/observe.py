"""Observe a deployment on this machine: its segments, their lag, and the running processes.

``quorin inspect``, ``quorin top``, ``quorin doctor`` and the metrics of segments all use an :class:`Observer`. It only
reads.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from quorin.engine.backend import Bounds
from quorin.engine.backend import logs as logs_of
from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.consumer.log_position import log_position_of
from quorin.engine.memory.kept import NOTHING_KEPT, Kept, kept_sizes
from quorin.engine.memory.lineage import attach_newest
from quorin.engine.memory.node import Node
from quorin.engine.memory.segment import Segment
from quorin.engine.ops import presence
from quorin.engine.ops.event_times import SCAN_SHARE, EventScans
from quorin.engine.ops.nodes import nodes_of, with_behind
from quorin.engine.ops.unread import unread
from quorin.engine.paths import absolute
from quorin.errors import QuorinError, SegmentNotFoundError
from quorin.schema import Schema, schema_from_json
from quorin.shm import default_shm_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from quorin.engine.backend import Backend, Log
    from quorin.engine.ops.event_times import Events
    from quorin.engine.ops.nodes import NodeReport
    from quorin.engine.ops.presence import Process, Report
    from quorin.engine.ops.unread import Unread

_MAX_ENTRIES, _MAX_BYTES = 256, 4 << 20
"""How much of the log is read to count a segment's lag; beyond that the count is a lower bound."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What the log holds and a segment does not show yet: entries, rows, and the age of the first of them.

    ``is_exact`` is False if the counts are lower bounds.
    """

    entries: int = 0
    rows: int = 0
    seconds: float = 0.0
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One schema and its current segment. ``stats`` comes from :meth:`quorin.shm.Segment.stats`.

    Without a readable segment, ``problem`` gives the reason, and the rest is None.
    """

    schema_name: str
    schema: Schema | None = None
    stats: dict[str, Any] | None = None
    lag: Lag | None = None
    events: Events | None = None
    readers: tuple[Process, ...] = ()
    kept: Kept = NOTHING_KEPT
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **(self.stats or {"schema": self.schema_name}),
            "fields": [
                {"name": field.name, "dtype": field.dtype.name, "shape": list(field.shape), "default": field.default}
                for field in (self.schema.fields if self.schema else ())
            ],
            "lag": asdict(self.lag) if self.lag else None,
            "oldest_event_time_ns": self.events.oldest_ns if self.events else None,
            "newest_event_time_ns": self.events.newest_ns if self.events else None,
            "readers": [str(process) for process in self.readers],
            "kept_generations": self.kept.generations,
            "kept_bytes": self.kept.bytes,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class LogState:
    """Where a log begins and ends, and how many entries and dead letters it has."""

    bounds: Bounds
    entries: int
    dead_letters: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        bounds = {name: getattr(self.bounds, name) for name in ("first", "last", "trimmed")}
        return {**bounds, "entries": self.entries, "dead_letters": self.dead_letters}


@dataclass(frozen=True, slots=True)
class Deployment:
    """One observation of a deployment."""

    address: str
    segments: tuple[SegmentState, ...]
    processes: tuple[Report, ...]
    nodes: tuple[NodeReport, ...]
    node: str
    logs: tuple[LogState, ...]
    shm_bytes: int
    shm_free_bytes: int

    @property
    def log(self) -> Bounds:
        """Where the log begins and ends. Of several logs, one a partition: the lowest and the highest position."""
        firsts = [state.bounds.first for state in self.logs if state.bounds.first]
        last, trimmed = (max(getattr(state.bounds, name) for state in self.logs) for name in ("last", "trimmed"))
        return Bounds(min(firsts, default=0), last, trimmed)

    @property
    def log_entries(self) -> int:
        """The entries in all logs."""
        return sum(state.entries for state in self.logs)

    @property
    def dead_letters(self) -> int:
        """The dead letters of all logs."""
        return sum(state.dead_letters for state in self.logs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        partitions = [{"partition": number, **state.as_dict()} for number, state in enumerate(self.logs)]
        return {
            "address": self.address,
            "segments": [segment.as_dict() for segment in self.segments],
            "processes": [
                {
                    "process": str(report.process),
                    "role": report.role,
                    "node": report.node,
                    "heartbeat_age_seconds": report.age_seconds,
                    "schemas": report.schemas,
                }
                for report in self.processes
            ],
            "node": self.node,
            "nodes": [node.as_dict() for node in self.nodes],
            "shared_memory": {"bytes": self.shm_bytes, "free_bytes": self.shm_free_bytes},
            "log": {
                "first": self.log.first,
                "last": self.log.last,
                "trimmed": self.log.trimmed,
                "entries": self.log_entries,
                "dead_letters": self.dead_letters,
                **({"partitions": partitions} if len(partitions) > 1 else {}),
            },
        }


@dataclass(frozen=True, slots=True)
class Here:
    """What a node knows while the control plane is away: its segments, without a lag in the log, how long ago each was
    known to be up to date (s; infinity if never), and the size of the file system of segments.
    """

    node: str
    segments: tuple[SegmentState, ...]
    confirmed_ages: Mapping[str, float]
    shm_bytes: int
    shm_free_bytes: int


class Observer:
    """Observes the deployment of a backend repeatedly, keeping segments mapped in between. For one thread."""

    def __init__(
        self, backend: Backend, *, shm_dir: str | os.PathLike[str] | None = None, stream_key: str = DEFAULT_STREAM_KEY
    ) -> None:
        self._backend = backend
        self._directory = absolute(default_shm_dir() if shm_dir is None else shm_dir)
        self._node = Node(self._directory, backend)
        self._stream_key = stream_key
        backend.log(stream_key)  # Refuses a name that no log has.
        self._segments: dict[str, Segment] = {}
        self._events = EventScans()
        self._readers: dict[str, tuple[Process, ...]] = {}
        self._kept: dict[str, Kept] = {}
        self._next_readers_at = 0.0

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the segments."""
        for segment in self._segments.values():
            segment.close()
        self._segments = {}

    def observe(self, *, schema_name: str | None = None, readers: bool = True, events: bool = True) -> Deployment:
        """Observe all segments, or only that of ``schema_name``.

        ``readers`` finds the processes that have a segment mapped. ``events`` scans rows for their event times. Each
        takes at most one percent of the time, so what is not due is kept, as it is without them.

        :raises ConnectionFailedError: if the control plane cannot be reached.
        """
        control, logs = self._backend.control, logs_of(self._backend, self._stream_key)
        bounds = [log.bounds() for log in logs]
        names = [name for name in sorted(control.schemas()) if schema_name in (None, name)]
        opened, problems = self._opened(names)
        self._kept = kept_sizes(self._directory)
        self._scan(opened, readers=readers, events=events)
        lags = _lags(logs, bounds, opened)
        states = []
        for name in names:
            try:
                if name in problems:
                    raise problems[name]
                states.append(self._state(name, opened[name], lags[name]))
            except QuorinError as error:
                states.append(SegmentState(name, self._stored_schema(name), problem=str(error)))
        sizes = [log.sizes() for log in logs]
        reports = tuple(presence.reports(control))
        nodes = tuple(with_behind(nodes_of(reports), logs, bounds))
        shm_bytes, shm_free_bytes = _sizes(self._directory)
        return Deployment(
            address=self._backend.address,
            segments=tuple(states),
            processes=reports,
            nodes=nodes,
            node=self._node.id,
            logs=tuple(LogState(ends, *size) for ends, size in zip(bounds, sizes, strict=True)),
            shm_bytes=shm_bytes,
            shm_free_bytes=shm_free_bytes,
        )

    def here(self) -> Here:
        """What this node knows by itself, with the readers and event times of the last observation.

        :raises ConnectionFailedError: if the control plane is away, and the node has never met the deployment.
        """
        names = sorted(self._node.currents())
        opened, problems = self._opened(names)
        missing = [SegmentState(name, problem=str(error)) for name, error in problems.items()]
        states = [self._state(name, segment, None) for name, segment in opened.items()]
        ages = {name: segment.confirmed_age_seconds() for name, segment in opened.items()}
        return Here(self._node.id, tuple(states + missing), ages, *_sizes(self._directory))

    def scan(self) -> None:
        """Find readers and event times for later observations without them.

        :raises ConnectionFailedError: if the control plane cannot be reached.
        """
        self._scan(self._opened(self._backend.control.schemas())[0], readers=True, events=True)

    def segment(self, schema_name: str) -> Segment:
        """The current segment of a schema, read-only; the observer closes it.

        :raises SegmentNotFoundError: if there is none, or its file is gone.
        """
        return self._segment(schema_name, self._node.current(schema_name))

    def _segment(self, schema_name: str, current: str | None) -> Segment:
        cached = self._segments.get(schema_name)
        if cached is not None and cached.name == current:
            return cached
        if cached is not None:
            cached.close()
        if current is None:
            raise SegmentNotFoundError(f"no segment is current for schema {schema_name!r} at {self._backend.address}")
        view = attach_newest(self._directory, current, None, writable=False)
        self._segments[schema_name] = Segment(view, None, read_only=True)
        return self._segments[schema_name]

    def _opened(self, names: Iterable[str]) -> tuple[dict[str, Segment], dict[str, QuorinError]]:
        """The current segments of schemas, and why others have none that can be read."""
        opened, problems = {}, {}
        currents = self._node.currents()
        for name in names:
            try:
                opened[name] = self._segment(name, currents.get(name))
                opened[name].current_view()
            except QuorinError as error:
                problems[name] = error
        return opened, problems

    def _scan(self, segments: dict[str, Segment], *, readers: bool, events: bool) -> None:
        started = time.monotonic()
        if readers and started >= self._next_readers_at:
            this = presence.Process.this()
            self._readers = {
                name: tuple(process for process in processes if process != this)
                for name, processes in presence.mapping_processes(self._directory).items()
            }
            now = time.monotonic()
            self._next_readers_at = now + (now - started) / SCAN_SHARE
        for name, segment in segments.items() if events else ():
            self._events.of(name, segment)

    def _state(self, name: str, segment: Segment, lag: Lag | None) -> SegmentState:
        view = segment.current_view()
        readers = self._readers.get(view.path.name, ())
        kept = self._kept.get(view.segment_name.line, NOTHING_KEPT)
        return SegmentState(name, segment.schema, segment.stats(), lag, self._events.last(name), readers, kept)

    def _stored_schema(self, name: str) -> Schema | None:
        try:
            return schema_from_json(self._backend.control.schemas()[name])
        except (QuorinError, ValueError, TypeError, KeyError):
            return None


def _sizes(directory: Path) -> tuple[int, int]:
    """The size of a directory's file system and what is free there, in bytes."""
    memory = os.statvfs(directory)
    return memory.f_blocks * memory.f_frsize, memory.f_bavail * memory.f_frsize


def _lags(logs: Sequence[Log], bounds: Sequence[Bounds], segments: Mapping[str, Segment]) -> dict[str, Lag]:
    """What segments lack, of all logs whose partitions they hold: the sums, and the age of the first entry."""
    lags: dict[str, list[Lag]] = {name: [] for name in segments}
    for number, (log, ends) in enumerate(zip(logs, bounds, strict=True)):
        partition, identity = number if len(logs) > 1 else None, log.identity() if ends.last else 0
        positions = {}
        for name, segment in segments.items():
            if number in segment.partitioning.held:
                at = log_position_of(segment, partition)
                positions[name] = at.position if at.log_identity == identity else 0
        found = unread(log, ends, positions.items(), max_entries=_MAX_ENTRIES, max_bytes=_MAX_BYTES)
        for name, position in positions.items():
            lags[name].append(_lag(found[name, position]))
    return {name: _sum(parts) for name, parts in lags.items()}


def _sum(lags: Sequence[Lag]) -> Lag:
    return Lag(
        sum(lag.entries for lag in lags),
        sum(lag.rows for lag in lags),
        max((lag.seconds for lag in lags), default=0.0),
        all(lag.is_exact for lag in lags),
    )


def _lag(found: Unread) -> Lag:
    if not found.headers:
        return Lag(is_exact=found.is_all)
    waiting = max(0.0, (time.time_ns() - found.headers[0].written_ns) / 1e9)
    return Lag(len(found.headers), found.rows, waiting, is_exact=found.is_all)
