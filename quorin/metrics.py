"""Prometheus metrics, in a separate registry.

Counting needs no library. Showing needs prometheus_client, which the extra ``metrics`` brings: ``registry`` is made
at its first use.

Counters cover all processes of this machine and user, dead ones included (:mod:`quorin.engine.counting.counters`), so
every process serves the same values. They restart from zero only when the machine restarts, or when the watchdog
retires those of a schema that is gone.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin import logging
from quorin.engine.counting import counters, requests, series
from quorin.engine.format.abi import (
    FIRST_BUCKET,
    TIME_BUCKETS,
    W_BATCH_NS,
    W_BATCH_ROWS,
    W_BATCH_TIMES,
    W_BATCHES,
    W_MISSING,
    W_READ_NS,
    W_READ_TIMES,
    W_READS,
)
from quorin.errors import needs_extra

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Iterator
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from quorin.engine.counting.series import Family, Slots

    registry: CollectorRegistry

_NS = 1e9


def __getattr__(name: str) -> Any:
    if name != "registry":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs_extra("metrics"):
        from prometheus_client import CollectorRegistry
    made = CollectorRegistry()
    made.register(_SharedCollector())
    return globals().setdefault(name, made)  # One step: of two threads, both get the same.


class _Series:
    """One labelled series of a counter."""

    __slots__ = ("_index", "_schema")

    def __init__(self, schema: str, index: int) -> None:
        self._schema = schema
        self._index = index

    def inc(self, count: int = 1) -> None:
        """Add ``count``."""
        if count:
            counters.add(self._schema, self._index, int(count))

    @property
    def value(self) -> int:
        """The sum over all processes."""
        words = counters.totals(lambda name: name == self._schema).get(self._schema)
        return 0 if words is None else int(words[self._index])


class SharedCounter:
    """A counter, by schema unless ``by_schema`` is False. Served values are counts times ``scale``."""

    def __init__(self, name: str, text: str, word: str, *, by_schema: bool = True, scale: float = 1) -> None:
        self._index = counters.word(word)
        self.by_schema = by_schema
        self.family = series.counter(name.removesuffix("_total"), text, self._index, scale=scale)

    def labels(self, schema: str) -> _Series:
        """The series of a schema."""
        return _Series(schema, self._index)

    def inc(self, count: int = 1) -> None:
        """Add ``count`` to the series without a schema."""
        self.labels(counters.EVERYWHERE).inc(count)


class SharedCounterByReason:
    """A counter by reason, or by what else ``label`` names, and, unless ``by_schema`` is False, by schema."""

    def __init__(
        self,
        name: str,
        text: str,
        word: str,
        reasons: tuple[str, ...],
        *,
        by_schema: bool = True,
        label: str = "reason",
    ) -> None:
        self._indexes = {reason: counters.word(f"{word}.{reason}") for reason in reasons}
        self.by_schema = by_schema
        self.family = series.counter_by(name.removesuffix("_total"), text, label, self._indexes)

    def labels(self, *labels: str) -> _Series:
        """The series of a schema (if by schema) and a reason."""
        schema = labels[0] if self.by_schema else counters.EVERYWHERE
        return _Series(schema, self._indexes[labels[-1]])


entries_appended = SharedCounter(
    "quorin_log_entries_appended_total", "Log entries that producers on this machine appended.", "entries_appended"
)
rows_appended = SharedCounter("quorin_log_rows_appended_total", "Rows in the appended entries.", "rows_appended")
rows_applied = SharedCounter("quorin_rows_applied_total", "Rows from the log that changed a segment.", "rows_applied")
rows_ignored = SharedCounter(
    "quorin_rows_ignored_total",
    "Rows from the log that changed nothing: the segment had a newer row, or the same one.",
    "rows_ignored",
)
dead_letters = SharedCounter(
    "quorin_dead_letters_total", "Entries that could not be applied and became dead letters.", "dead_letters"
)
dead_letters_dropped = SharedCounter(
    "quorin_dead_letters_dropped_total",
    "Dead letters that were dropped to make room for newer ones.",
    "dead_letters_dropped",
    by_schema=False,
)
attaches = SharedCounter("quorin_segment_attaches_total", "Times a process mapped a segment's file.", "attaches")
growths = SharedCounter(
    "quorin_segment_growths_total", "Times a full segment was replaced by one with room.", "growths"
)
flips = SharedCounter(
    "quorin_segment_flips_total",
    "Times a generation replaced another: growth, takeover, replacement, upgrade.",
    "flips",
)
writer_leases = SharedCounter(
    "quorin_writer_leases_total", "Times a process became a segment's writer.", "writer_leases"
)
writer_recoveries = SharedCounter(
    "quorin_writer_recoveries_total", "Times a new writer repaired what a dead one had left.", "writer_recoveries"
)
writers_overtaken = SharedCounter(
    "quorin_writers_overtaken_total", "Times a frozen writer was overtaken.", "writers_overtaken"
)
writers_fenced = SharedCounter(
    "quorin_writers_fenced_total", "Times a writer learned that it had been overtaken.", "writers_fenced"
)
flushes = SharedCounter("quorin_flushes_total", "Flushes of the history.", "flushes", by_schema=False)
flush_failures = SharedCounter(
    "quorin_flush_failures_total",
    "Flushes of the history that failed; they are repeated, and nothing is trimmed meanwhile.",
    "flush_failures",
    by_schema=False,
)
flush_seconds = SharedCounter(
    "quorin_flush_seconds_total", "Time spent in flushes of the history.", "flush_ns", by_schema=False, scale=1 / _NS
)
entries_trimmed = SharedCounter(
    "quorin_log_entries_trimmed_total", "Entries that consumers removed from the log.", "entries_trimmed",
    by_schema=False,
)  # fmt: skip
history_files_skipped = SharedCounter(
    "quorin_history_files_skipped_total",
    "Damaged or foreign files of a history that reads skipped, each counted once per process.",
    "history_files_skipped",
)
upgrades = SharedCounter("quorin_schema_upgrades_total", "Segments that were upgraded to a newer schema.", "upgrades")
replaces = SharedCounter(
    "quorin_replaces_total", "Loads that replaced the rows of this machine's segment, rollbacks included.", "replaces"
)
rows_replaced = SharedCounter("quorin_replace_rows_total", "Rows of these loads.", "rows_replaced")
loads_refused = SharedCounter(
    "quorin_replaces_refused_total",
    "Loads that were not put in force: refused by a check, aborted before their commit, or incomplete.",
    "loads_refused",
)
watchdog_ticks = SharedCounter("quorin_watchdog_ticks_total", "Ticks of a watchdog.", "watchdog_ticks", by_schema=False)
watchdog_dead_processes = SharedCounter(
    "quorin_watchdog_dead_processes_total",
    "Entries of dead processes that were removed from the control plane.",
    "watchdog_dead_processes",
    by_schema=False,
)
watchdog_reclaimed_files = SharedCounterByReason(
    "quorin_watchdog_reclaimed_files_total",
    "Orphaned segment files that were removed.",
    "reclaimed",
    counters.RECLAIM_REASONS,
    by_schema=False,
)
watchdog_reclaimed_bytes = SharedCounter(
    "quorin_watchdog_reclaimed_bytes_total",
    "Bytes of the removed segment files.",
    "watchdog_reclaimed_bytes",
    by_schema=False,
)
reanchored = SharedCounterByReason(
    "quorin_log_reanchored_total",
    "Times a consumer found that the log is not the one that its segment followed, or lacks entries.",
    "reanchored",
    counters.REANCHOR_REASONS,
)
log_events_dropped = SharedCounter(
    "quorin_log_events_dropped_total",
    "Log events that were dropped because standard error is full or closed.",
    "log_events_dropped",
    by_schema=False,
)
stale_reads = SharedCounter(
    "quorin_stale_reads_total",
    "Reads of rows that were not known to be as fresh as max_lag_seconds demands.",
    "stale_reads",
)
served_requests = SharedCounter(
    "quorin_served_log_requests_total", "Requests in files of the served log.", "served_requests", by_schema=False
)
served_rows = SharedCounter(
    "quorin_served_log_rows_total", "Rows in files of the served log.", "served_rows", by_schema=False
)
served_dropped = SharedCounter(
    "quorin_served_log_dropped_total",
    "Requests that were not logged because the ring of their process was full or could not be had.",
    "served_dropped",
    by_schema=False,
)
served_lost = SharedCounter(
    "quorin_served_log_lost_total",
    "Records that were lost because a process died while it wrote them, or were damaged.",
    "served_lost",
    by_schema=False,
)
served_failures = SharedCounter(
    "quorin_served_log_failures_total",
    "Files of the served log that could not be written; their records are kept as long as there is room.",
    "served_failures",
    by_schema=False,
)
requests_refused = SharedCounterByReason(
    "quorin_http_requests_refused_total",
    "Requests that servers refused before an application saw them.",
    "requests_refused",
    counters.REFUSAL_REASONS,
    by_schema=False,
)
checks_failed = SharedCounterByReason(
    "quorin_checks_failed_total", "Checks that refused a new generation.", "checks_failed", counters.CHECKS,
    label="check",
)  # fmt: skip
logging.count_dropped_with(log_events_dropped.inc)


def count_appended(schema_name: str, entries: int, rows: int) -> None:
    """Count entries and rows that a producer appended to the log."""
    counters.add_each(schema_name, {_ENTRIES_APPENDED: entries, _ROWS_APPENDED: rows})


def count_applied(schema_name: str, applied: int, ignored: int, delay_ns: int) -> None:
    """Count rows that changed a segment, rows that did not, and the delay of the newest one since its producer."""
    bucket = bisect_left(counters.DELAY_BOUNDS, delay_ns / _NS)
    counts = {_ROWS_APPLIED: applied, _ROWS_IGNORED: ignored, _DELAY_NS: delay_ns, _DELAY_BUCKETS + bucket: 1}
    counters.add_each(schema_name, counts)


_ENTRIES_APPENDED, _ROWS_APPENDED = counters.word("entries_appended"), counters.word("rows_appended")
_ROWS_APPLIED, _ROWS_IGNORED = counters.word("rows_applied"), counters.word("rows_ignored")
_DELAY_NS, _DELAY_BUCKETS = counters.word("apply_delay_ns"), counters.word("apply_delay.0")


def start_metrics_server(port: int = 9100, *, address: str = "127.0.0.1") -> tuple[WSGIServer, threading.Thread]:
    """Serve ``registry`` over HTTP at ``/metrics``, from a daemon thread; return the server and its thread.

    The counters cover all processes of this machine and user, and all their deployments. By default only this machine
    can connect; ``address`` ``0.0.0.0`` lets other machines connect.

    :raises OSError: if the port is taken.
    """
    with needs_extra("metrics"):
        from prometheus_client import start_http_server
    return start_http_server(port, address, registry=__getattr__("registry"))


def counted(schemas: Collection[str] = (), *, others: bool = True) -> Iterator[tuple[Family, Slots]]:
    """The families of all counters, each with the labels and words of its slots.

    ``schemas`` have slots even if nothing was counted for them; with ``others`` follow all schemas that this user ever
    counted for on this machine.
    """
    shown = {*schemas, counters.EVERYWHERE, counters.UNKNOWN}
    totals = counters.totals(None if others else lambda name: name in shown or requests.is_request(name))
    nothing = np.zeros(counters.WORD_COUNT, np.uint64)
    names = {name for name in totals if name == counters.UNKNOWN or requests.is_schema(name)}
    by_schema = [((("schema", name),), totals.get(name, nothing)) for name in sorted(names.union(schemas))]
    overall = [((), totals.get(counters.EVERYWHERE, nothing))]
    by_request = [((("path", path), ("way", way)), words) for path, way, words in requests.paths(totals)]
    for one in _COUNTERS:
        yield one.family, by_schema if one.by_schema else overall
    yield from ((family, by_schema) for family in _OF_SCHEMAS)
    yield from ((family, by_request) for family in _OF_REQUESTS)


def requests_in_flight() -> Metric:
    """The gauge of requests that applications are answering."""
    text = "Requests that an application is answering at this moment."
    from prometheus_client.core import GaugeMetricFamily

    gauge = GaugeMetricFamily("quorin_http_requests_in_flight", text, labels=["path"])
    for path, count in requests.in_flight().items():
        gauge.add_metric([path], count)
    return gauge


class _SharedCollector:
    """Collects all metrics above, summed at each scrape."""

    def collect(self) -> Iterator[Metric]:
        for family, slots in counted():
            yield family.metric(slots)
        yield requests_in_flight()


def _octaves(name: str, text: str, first: int, total: int, octaves: range) -> Family:
    """A histogram in octaves, of a kernel's counts in half octaves."""
    buckets: list[list[int]] = [[] for _ in range(len(octaves) + 1)]
    for number in range(TIME_BUCKETS):
        buckets[min(max(0, number // 2 + 1 - octaves.start), len(octaves))].append(first + number)
    bounds = [2 ** (FIRST_BUCKET + octave) / _NS for octave in octaves]
    return series.histogram(name, text, bounds, buckets, total)


def _bounded(name: str, text: str, bounds: tuple[float, ...], first: str, total: str) -> Family:
    """A histogram of words that count up to a bound each."""
    begin = counters.word(first)
    buckets = [[begin + number] for number in range(len(bounds) + 1)]
    return series.histogram(name, text, bounds, buckets, counters.word(total))


_COUNTERS = (
    entries_appended, rows_appended, rows_applied, rows_ignored, dead_letters, dead_letters_dropped, attaches, growths,
    flips, writer_leases, writer_recoveries, writers_overtaken, writers_fenced, flushes, flush_failures, flush_seconds,
    entries_trimmed, history_files_skipped, upgrades, watchdog_ticks, watchdog_dead_processes, watchdog_reclaimed_files,
    watchdog_reclaimed_bytes, reanchored, log_events_dropped, requests_refused, stale_reads,
    replaces, rows_replaced, loads_refused, checks_failed, served_requests, served_rows, served_dropped, served_lost,
    served_failures,
)  # fmt: skip
_OF_SCHEMAS = (
    _bounded(
        "quorin_apply_delay_seconds",
        "Time from the creation of an entry until it is visible in the segment, for each round's newest entry.",
        counters.DELAY_BOUNDS, "apply_delay.0", "apply_delay_ns",
    ),
    series.counter("quorin_reads", "Single-row reads that found their row.", W_READS),
    series.counter("quorin_batch_reads", "Batch reads.", W_BATCHES),
    series.counter("quorin_batch_read_rows", "Rows that batch reads requested.", W_BATCH_ROWS),
    series.counter("quorin_rows_missing", "Requested rows that do not exist, single and in batches.", W_MISSING),
    _octaves(
        "quorin_read_seconds", "Duration of the compiled part of every 64th single-row read.",
        W_READ_TIMES, W_READ_NS, range(1, 14),
    ),
    _octaves(
        "quorin_batch_read_seconds", "Duration of the compiled part of every 8th batch read.",
        W_BATCH_TIMES, W_BATCH_NS, range(5, 25),
    ),
)  # fmt: skip
_OF_REQUESTS = (
    series.counter_by(
        "quorin_http_requests", "Answered requests.", "status",
        {status: counters.word(f"requests.{status}") for status in counters.STATUS_CLASSES},
    ),
    series.counter(
        "quorin_http_rows", "Entities of the requests that Quorin answered.", counters.word("request_rows")
    ),
    series.counter(
        "quorin_http_features", "Features of the requests that Quorin answered, for each request.",
        counters.word("request_features"),
    ),
    _bounded(
        "quorin_http_request_seconds", "Time to answer.", counters.REQUEST_BOUNDS, "request_time.0", "request_ns"
    ),
)  # fmt: skip
