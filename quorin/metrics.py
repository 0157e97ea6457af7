"""Prometheus metrics, in a separate registry. A series appears with its first event.

Counters cover all processes of this machine and user, dead ones included (:mod:`quorin.engine.counting.counters`), so
every process serves the same values. They restart from zero only when the machine restarts.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from quorin import logging
from quorin.engine.counting import counters, requests
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

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.metrics_core import Metric

    from quorin.engine.arrays import UInt64s

registry = CollectorRegistry()

_NS = 1e9


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
        words = counters.totals().get(self._schema)
        return 0 if words is None else int(words[self._index])


class SharedCounter:
    """A counter, by schema unless ``by_schema`` is False. Served values are counts times ``scale``."""

    def __init__(self, name: str, text: str, word: str, *, by_schema: bool = True, scale: float = 1) -> None:
        self.name = name
        self._text = text
        self._index = counters.word(word)
        self._by_schema = by_schema
        self._scale = scale

    def labels(self, schema: str) -> _Series:
        """The series of a schema."""
        return _Series(schema, self._index)

    def inc(self, count: int = 1) -> None:
        """Add ``count`` to the series without a schema."""
        self.labels(counters.EVERYWHERE).inc(count)

    def family(self, totals: dict[str, UInt64s]) -> Metric:
        """The series as a Prometheus metric family."""
        family = CounterMetricFamily(self.name, self._text, labels=["schema"] if self._by_schema else [])
        for schema, words in sorted(totals.items()):
            if value := int(words[self._index]):
                family.add_metric([schema] if self._by_schema else [], value * self._scale)
        return family


class SharedCounterByReason:
    """A counter by reason and, unless ``by_schema`` is False, by schema."""

    def __init__(self, name: str, text: str, word: str, reasons: tuple[str, ...], *, by_schema: bool = True) -> None:
        self.name = name
        self._text = text
        self._indexes = {reason: counters.word(f"{word}.{reason}") for reason in reasons}
        self._by_schema = by_schema

    def labels(self, *labels: str) -> _Series:
        """The series of a schema (if by schema) and a reason."""
        schema = labels[0] if self._by_schema else counters.EVERYWHERE
        return _Series(schema, self._indexes[labels[-1]])

    def family(self, totals: dict[str, UInt64s]) -> Metric:
        """The series as a Prometheus metric family."""
        family = CounterMetricFamily(self.name, self._text, labels=["schema", "reason"][not self._by_schema :])
        for schema, words in sorted(totals.items()):
            for reason, index in self._indexes.items():
                if value := int(words[index]):
                    family.add_metric([schema, reason][not self._by_schema :], value)
        return family


class _Delay:
    """The time of rows from the producer to the segment."""

    name = "quorin_apply_delay_seconds"

    def family(self, totals: dict[str, UInt64s]) -> Metric:
        text = "Time from the creation of an entry until it is visible in the segment, for each round's newest entry."
        indexes = range(counters.word("apply_delay.0"), counters.word("apply_delay.0") + len(counters.DELAY_BOUNDS) + 1)
        family = HistogramMetricFamily(self.name, text, labels=["schema"])
        for schema, words in sorted(totals.items()):
            counts = [int(words[index]) for index in indexes]
            if any(counts):
                total = int(words[counters.word("apply_delay_ns")]) / _NS
                family.add_metric([schema], _cumulated(counters.DELAY_BOUNDS, counts), total)
        return family


class _Reads:
    """The kernels' counters: single-row reads, batch reads and their rows, and the duration of sampled reads."""

    def families(self, totals: dict[str, UInt64s]) -> Iterator[Metric]:
        for name, text, index in (
            ("quorin_reads_total", "Single-row reads that found their row.", W_READS),
            ("quorin_batch_reads_total", "Batch reads.", W_BATCHES),
            ("quorin_batch_read_rows_total", "Rows that batch reads requested.", W_BATCH_ROWS),
            ("quorin_rows_missing_total", "Requested rows that do not exist, single and in batches.", W_MISSING),
        ):
            family = CounterMetricFamily(name, text, labels=["schema"])
            for schema, words in sorted(totals.items()):
                if value := int(words[index]):
                    family.add_metric([schema], value)
            yield family
        for name, text, buckets, total, octaves in (
            (
                "quorin_read_seconds",
                "Duration of the compiled part of every 64th single-row read.",
                W_READ_TIMES, W_READ_NS, range(1, 14),
            ),
            ("quorin_batch_read_seconds", "Duration of the compiled part of every 8th batch read.",
             W_BATCH_TIMES, W_BATCH_NS, range(5, 25)),
        ):  # fmt: skip
            histogram = HistogramMetricFamily(name, text, labels=["schema"])
            for schema, words in sorted(totals.items()):
                counts = [int(words[buckets + number]) for number in range(TIME_BUCKETS)]
                if any(counts):
                    bounds, merged = _merged(counts, octaves)
                    histogram.add_metric([schema], _cumulated(bounds, merged), int(words[total]) / _NS)
            yield histogram


class _Requests:
    """What servers count of requests, by path and way."""

    def families(self, totals: dict[str, UInt64s]) -> Iterator[Metric]:
        counted = requests.paths(totals)
        answered = CounterMetricFamily("quorin_http_requests", "Answered requests.", labels=["path", "way", "status"])
        for path, way, words in counted:
            for status in counters.STATUS_CLASSES:
                if value := int(words[counters.word(f"requests.{status}")]):
                    answered.add_metric([path, way, status], value)
        yield answered
        for name, text, word in (
            ("quorin_http_rows", "Entities of the requests that Quorin answered.", "request_rows"),
            ("quorin_http_features", "Features of the requests that Quorin answered, for each request.",
             "request_features"),
        ):  # fmt: skip
            family = CounterMetricFamily(name, text, labels=["path", "way"])
            for path, way, words in counted:
                if value := int(words[counters.word(word)]):
                    family.add_metric([path, way], value)
            yield family
        seconds = HistogramMetricFamily("quorin_http_request_seconds", "Time to answer.", labels=["path", "way"])
        first, size = counters.word("request_time.0"), len(counters.REQUEST_BOUNDS) + 1
        for path, way, words in counted:
            counts = [int(count) for count in words[first : first + size]]
            if any(counts):
                total = int(words[counters.word("request_ns")]) / _NS
                seconds.add_metric([path, way], _cumulated(counters.REQUEST_BOUNDS, counts), total)
        yield seconds
        text = "Requests that an application is answering at this moment."
        in_flight = GaugeMetricFamily("quorin_http_requests_in_flight", text, labels=["path"])
        for path, count in requests.in_flight().items():
            in_flight.add_metric([path], count)
        yield in_flight


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
requests_refused = SharedCounterByReason(
    "quorin_http_requests_refused_total",
    "Requests that servers refused before an application saw them.",
    "requests_refused",
    counters.REFUSAL_REASONS,
    by_schema=False,
)
apply_delay_seconds = _Delay()
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
    """Serve :data:`registry` over HTTP at ``/metrics``, from a daemon thread; return the server and its thread.

    The counters cover all processes of this machine and user. By default only this machine can connect; ``address``
    ``0.0.0.0`` lets other machines connect.

    :raises OSError: if the port is taken.
    """
    return start_http_server(port, address, registry=registry)


class _SharedCollector:
    """Collects all metrics above, summed at each scrape."""

    def collect(self) -> Iterator[Metric]:
        totals = counters.totals()
        shown = [metric.family(totals) for metric in _SHOWN]
        for family in [*shown, *_Reads().families(totals), *_Requests().families(totals)]:
            if family.samples:
                yield family


def _merged(counts: list[int], octaves: range) -> tuple[list[float], list[int]]:
    """Merge half octaves into octaves: upper bounds in seconds, and counts, with one more beyond the last bound."""
    bounds = [2 ** (FIRST_BUCKET + octave) / _NS for octave in octaves]
    merged = [0] * (len(bounds) + 1)
    for number, count in enumerate(counts):
        merged[min(max(0, number // 2 + 1 - octaves.start), len(bounds))] += count
    return bounds, merged


def _cumulated(bounds: Any, counts: list[int]) -> list[tuple[str, float]]:
    buckets, so_far = [], 0
    for bound, count in zip([*bounds, float("inf")], counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(so_far)))
    return buckets


_SHOWN = (
    entries_appended, rows_appended, rows_applied, rows_ignored, dead_letters, dead_letters_dropped, attaches, growths,
    flips, writer_leases, writer_recoveries, writers_overtaken, writers_fenced, flushes, flush_seconds, entries_trimmed,
    history_files_skipped, upgrades, watchdog_ticks, watchdog_dead_processes, watchdog_reclaimed_files,
    watchdog_reclaimed_bytes, reanchored, log_events_dropped, requests_refused, stale_reads,
    apply_delay_seconds,
)  # fmt: skip
registry.register(_SharedCollector())
