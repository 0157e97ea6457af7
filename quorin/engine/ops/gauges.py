"""Prometheus gauges of segments, lag and log, computed at each scrape."""

from __future__ import annotations

import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

from quorin.errors import QuorinError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from quorin.engine.ops.observe import Deployment, Observer, SegmentState

_log = get_logger(__name__)

_STATS = {
    "rows": "Entities with a row.",
    "deleted_rows": "Rows of deleted entities.",
    "capacity": "Entities that fit before the segment grows.",
    "load": "Rows, live and deleted, relative to the capacity.",
    "bytes": "Size of the segment's file.",
    "heap_bytes": "Size of the heap for variable-size values.",
    "heap_used_bytes": "Used part of the heap, garbage included.",
    "heap_garbage_bytes": "Part of the heap that updates left behind.",
    "generation": "Generation of the segment, starting at 1.",
    "position": "Log position up to which everything is applied.",
    "age_seconds": "Time since this generation was created.",
}


class SegmentCollector:
    """Observes at each scrape. If the control plane is unreachable, ``quorin_control_plane_up`` is 0, and the other
    gauges are of what this node knows by itself: its segments, how far they may be behind, and its memory.

    Readers and event times are found after a scrape, for the next one: with many rows and processes that takes long.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        # Each scrape runs in its own thread, but an observer is for one thread.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quorin-metrics")
        self._scanning = self._thread.submit(self._scan)
        self._is_reachable = True
        self.schema_names: tuple[str, ...] = ()
        """The schemas of the last observation."""

    def close(self) -> None:
        """Stop the observing thread."""
        self._thread.shutdown()

    def collect(self) -> Iterator[Metric]:
        """Observe once and yield the gauges."""
        up = GaugeMetricFamily("quorin_control_plane_up", "Whether the control plane is reachable.")
        if self._scanning.done():
            self._scanning.result()
        try:
            seen = self._thread.submit(self._observer.observe, readers=False, events=False).result()
        except QuorinError as error:
            if self._is_reachable:  # Said once, not at every scrape.
                _log.warning("control_plane_unreachable", error=str(error))
            self._is_reachable = False
            up.add_metric([], 0)
            yield up
            yield from self._here()
            return
        finally:
            if self._scanning.done():
                self._scanning = self._thread.submit(self._scan)
        if not self._is_reachable:
            _log.warning("control_plane_reachable")
        self._is_reachable = True
        self.schema_names = tuple(state.schema_name for state in seen.segments)
        up.add_metric([], 1)
        yield up
        yield from _of_memory(seen.shm_bytes, seen.shm_free_bytes)
        yield from _of_log(seen)
        yield from _of_nodes(seen)
        yield from _of_segments(seen.segments)

    def _here(self) -> Iterator[Metric]:
        try:
            here = self._thread.submit(self._observer.here).result()
        except QuorinError:  # The node has never met the deployment.
            return
        yield from _of_memory(here.shm_bytes, here.shm_free_bytes)
        info, lag = _node_info(here.node), _node_lag()
        for name, age in here.confirmed_ages.items():
            if math.isfinite(age):
                lag.add_metric([here.node, name], age)
        yield from (info, lag)
        yield from _of_segments(here.segments)

    def _scan(self) -> None:
        with suppress(QuorinError):  # The next observation meets the same error, and reports it.
            self._observer.scan()


def _of_memory(total: int, free: int) -> Iterator[Metric]:
    yield GaugeMetricFamily("quorin_shm_bytes", "Size of the file system of segments.", value=total)
    yield GaugeMetricFamily("quorin_shm_free_bytes", "Free bytes there.", value=free)


def _of_log(seen: Deployment) -> Iterator[Metric]:
    yield GaugeMetricFamily("quorin_log_entries", "Entries in the log.", value=seen.log_entries)
    yield GaugeMetricFamily("quorin_log_last_position", "The last assigned position.", value=seen.log.last)
    yield GaugeMetricFamily("quorin_log_dead_letters", "Dead letters in the log.", value=seen.dead_letters)
    if len(seen.logs) > 1:
        yield from _of_partitions(seen)
    processes = GaugeMetricFamily("quorin_processes", "Running processes.", labels=["role"])
    for role, count in sorted(Counter(report.role for report in seen.processes).items()):
        processes.add_metric([role], count)
    yield processes


def _of_partitions(seen: Deployment) -> Iterator[Metric]:
    """With several partitions, each log, and how far behind it each replica is."""
    entries = GaugeMetricFamily("quorin_partition_log_entries", "Entries in the partition's log.", labels=["partition"])
    letters = GaugeMetricFamily(
        "quorin_partition_dead_letters", "Dead letters in the partition's log.", labels=["partition"]
    )
    lag = GaugeMetricFamily(
        "quorin_node_partition_lag_seconds",
        "Time since the partition of the replica was known to have all rows of its log.",
        labels=["node", "schema", "partition"],
    )
    rows = GaugeMetricFamily(
        "quorin_node_partition_behind_rows",
        "Minimum number of rows that the partition of the replica lacks.",
        labels=["node", "schema", "partition"],
    )
    for number, log in enumerate(seen.logs):
        entries.add_metric([str(number)], log.entries)
        letters.add_metric([str(number)], log.dead_letters)
    for node in seen.nodes:
        for replica in node.replicas:
            for part in replica.parts:
                labels = [node.node, replica.schema_name, str(part.partition)]
                if part.lag_seconds is not None:
                    lag.add_metric(labels, part.lag_seconds)
                rows.add_metric(labels, part.behind.rows)
    yield from (entries, letters, lag, rows)


def _node_info(node: str) -> GaugeMetricFamily:
    info = GaugeMetricFamily("quorin_node_info", "The node that these metrics are scraped from.", labels=["node"])
    info.add_metric([node], 1)
    return info


def _node_lag() -> GaugeMetricFamily:
    text = "Time since the replica was known to have all rows of the log."
    return GaugeMetricFamily("quorin_node_lag_seconds", text, labels=["node", "schema"])


def _of_nodes(seen: Deployment) -> Iterator[Metric]:
    info, lag = _node_info(seen.node), _node_lag()
    up = GaugeMetricFamily("quorin_node_up", "Whether the node reported within ten minutes.", labels=["node"])
    silent = GaugeMetricFamily("quorin_node_silent_seconds", "Time since the node's last report.", labels=["node"])
    rows = GaugeMetricFamily(
        "quorin_node_behind_rows", "Minimum number of rows that the replica lacks.", labels=["node", "schema"]
    )
    size = GaugeMetricFamily(
        "quorin_node_behind_bytes", "Minimum size of the log entries that the replica lacks.", labels=["node", "schema"]
    )
    for node in seen.nodes:
        up.add_metric([node.node], node.is_alive)
        silent.add_metric([node.node], node.silent_seconds)
        for replica in node.replicas:
            labels = [node.node, replica.schema_name]
            if replica.lag_seconds is not None:
                lag.add_metric(labels, replica.lag_seconds)
            rows.add_metric(labels, replica.behind.rows)
            size.add_metric(labels, replica.behind.bytes)
    yield from (info, up, silent, lag, rows, size)


def _of_segments(states: tuple[SegmentState, ...]) -> Iterator[Metric]:
    up = GaugeMetricFamily("quorin_segment_up", "Whether the segment exists and is readable.", labels=["schema"])
    for state in states:
        up.add_metric([state.schema_name], state.problem is None)
    yield up
    readable = [state for state in states if state.stats is not None]
    for name, text in _STATS.items():
        gauge = GaugeMetricFamily(f"quorin_segment_{name}", text, labels=["schema"])
        for state in readable:
            gauge.add_metric([state.schema_name], (state.stats or {})[name])
        yield gauge
    for name, text, values in (
        (
            "quorin_lag_entries",
            "Minimum number of log entries not applied yet.",
            [s.lag.entries if s.lag else None for s in readable],
        ),
        (
            "quorin_lag_rows",
            "Minimum number of rows not applied yet.",
            [s.lag.rows if s.lag else None for s in readable],
        ),
        (
            "quorin_lag_seconds",
            "Time that the first unapplied entry has waited.",
            [s.lag.seconds if s.lag else None for s in readable],
        ),
        ("quorin_newest_event_age_seconds", "Age of the newest event.", [_age(s, newest=True) for s in readable]),
        ("quorin_oldest_event_age_seconds", "Age of the oldest event.", [_age(s, newest=False) for s in readable]),
        (
            "quorin_kept_generations",
            "Generations that are kept.",
            [s.kept.generations for s in readable],
        ),
        ("quorin_kept_bytes", "Size of the kept generations.", [s.kept.bytes for s in readable]),
        ("quorin_segment_readers", "Other processes that have the segment mapped.", [len(s.readers) for s in readable]),
        (
            "quorin_writer_heartbeat_age_seconds",
            "Time since the writer's last heartbeat.",
            [_heartbeat_age(s) for s in readable],
        ),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["schema"])
        for state, value in zip(readable, values, strict=True):
            if value is not None:
                gauge.add_metric([state.schema_name], value)
        yield gauge


def _age(state: SegmentState, *, newest: bool) -> float | None:
    moment = None
    if state.events is not None:
        moment = state.events.newest_ns if newest else state.events.oldest_ns
    return None if moment is None else (time.time_ns() - moment) / 1e9


def _heartbeat_age(state: SegmentState) -> float | None:
    stats = state.stats or {}
    return stats["writer_heartbeat_age_seconds"] if stats["writer_pid"] else None
