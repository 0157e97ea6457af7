"""What a deployment looks like, for Prometheus: gauges that are made when somebody asks, of segments, lag and log."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

from quorin import metrics
from quorin.errors import QuorinError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from quorin.engine.ops.observe import Deployment, Observer, SegmentState

_log = get_logger(__name__)

_STATS = {
    "rows": "Entities that have a row.",
    "deleted_rows": "Rows that only remember a deletion.",
    "capacity": "Entities that fit before the segment grows.",
    "load": "Rows, live and deleted, against the capacity.",
    "bytes": "Size of the segment's file.",
    "heap_bytes": "Room for values of variable size.",
    "heap_used_bytes": "How much of it is used, garbage included.",
    "heap_garbage_bytes": "How much of it is what updates left behind.",
    "generation": "How many files the segment has been, itself included.",
    "position": "The log position up to which everything is applied.",
    "age_seconds": "Time since this generation was made.",
}


@contextmanager
def exposed(observer: Observer) -> Iterator[None]:
    """Show what an observer sees in :data:`quorin.metrics.registry`, for a block."""
    collector = SegmentCollector(observer)
    metrics.registry.register(collector)
    try:
        yield
    finally:
        metrics.registry.unregister(collector)
        collector.close()


class SegmentCollector:
    """Looks when it is asked. Where the control plane can't be reached, ``quorin_control_plane_up`` is 0, and alone."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        # Every scrape comes in a thread of its own, and a backend keeps a connection for each thread that it meets.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quorin-metrics")

    def close(self) -> None:
        """End the thread that looks."""
        self._thread.shutdown()

    def collect(self) -> Iterator[Metric]:
        """One look."""
        up = GaugeMetricFamily("quorin_control_plane_up", "Whether the control plane can be reached.")
        try:
            seen = self._thread.submit(self._observer.observe).result()
        except QuorinError as error:
            _log.warning("control_plane_unreachable", error=str(error))
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _of_log(seen)
        yield from _of_segments(seen.segments)


def _of_log(seen: Deployment) -> Iterator[Metric]:
    yield GaugeMetricFamily("quorin_log_entries", "Entries in the log.", value=seen.log_entries)
    yield GaugeMetricFamily("quorin_log_last_position", "The last position that was given.", value=seen.log.last)
    yield GaugeMetricFamily("quorin_log_dead_letters", "Dead letters that are kept.", value=seen.dead_letters)
    processes = GaugeMetricFamily("quorin_processes", "Processes that said they are there.", labels=["role"])
    for role, count in sorted(Counter(report.role for report in seen.processes).items()):
        processes.add_metric([role], count)
    yield processes


def _of_segments(states: tuple[SegmentState, ...]) -> Iterator[Metric]:
    up = GaugeMetricFamily("quorin_segment_up", "Whether the segment is there and can be read.", labels=["schema"])
    for state in states:
        up.add_metric([state.schema_name], state.problem is None)
    yield up
    whole = [state for state in states if state.stats is not None]
    for name, text in _STATS.items():
        gauge = GaugeMetricFamily(f"quorin_segment_{name}", text, labels=["schema"])
        for state in whole:
            gauge.add_metric([state.schema_name], (state.stats or {})[name])
        yield gauge
    for name, text, values in (
        (
            "quorin_lag_entries",
            "Entries that the segment lacks; at least.",
            [s.lag.entries if s.lag else None for s in whole],
        ),
        ("quorin_lag_rows", "Rows that the segment lacks; at least.", [s.lag.rows if s.lag else None for s in whole]),
        (
            "quorin_lag_seconds",
            "How long the first of them has waited.",
            [s.lag.seconds if s.lag else None for s in whole],
        ),
        ("quorin_newest_event_age_seconds", "Age of the newest row's event.", [_age(s, newest=True) for s in whole]),
        ("quorin_oldest_event_age_seconds", "Age of the oldest row's event.", [_age(s, newest=False) for s in whole]),
        ("quorin_segment_readers", "Other processes that have it mapped.", [len(s.readers) for s in whole]),
        (
            "quorin_writer_heartbeat_age_seconds",
            "Time since the writer's last sign.",
            [_beat(s) for s in whole],
        ),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["schema"])
        for state, value in zip(whole, values, strict=True):
            if value is not None:
                gauge.add_metric([state.schema_name], value)
        yield gauge


def _age(state: SegmentState, *, newest: bool) -> float | None:
    moment = None
    if state.events is not None:
        moment = state.events.newest_ns if newest else state.events.oldest_ns
    return None if moment is None else (time.time_ns() - moment) / 1e9


def _beat(state: SegmentState) -> float | None:
    stats = state.stats or {}
    return stats["writer_heartbeat_age_seconds"] if stats["writer_pid"] else None
