"""What Quorin counts, for Prometheus, on a registry of its own. A series appears once it has been observed."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

if TYPE_CHECKING:
    import threading
    from wsgiref.simple_server import WSGIServer

registry = CollectorRegistry()

entries_appended = Counter(
    "quorin_log_entries_appended_total",
    "Entries that producers of this process appended.",
    ["schema"],
    registry=registry,
)
rows_appended = Counter(
    "quorin_log_rows_appended_total", "Rows in the entries that were appended.", ["schema"], registry=registry
)
rows_applied = Counter(
    "quorin_rows_applied_total", "Rows from the log that changed a segment.", ["schema"], registry=registry
)
rows_ignored = Counter(
    "quorin_rows_ignored_total",
    "Rows from the log that changed nothing: the segment had a newer row, or the same one.",
    ["schema"],
    registry=registry,
)
dead_letters = Counter(
    "quorin_dead_letters_total", "Entries that could not be applied and were put aside.", ["schema"], registry=registry
)
dead_letters_dropped = Counter(
    "quorin_dead_letters_dropped_total", "Dead letters that made room for newer ones.", registry=registry
)
reanchored = Counter(
    "quorin_log_reanchored_total",
    "Times a consumer found that the log was not the one its segment had followed, or lacked entries.",
    ["schema", "reason"],
    registry=registry,
)
history_files_skipped = Counter(
    "quorin_history_files_skipped_total",
    "Files in a history that were left out of reads because they are damaged or foreign, each counted once.",
    ["schema"],
    registry=registry,
)
upgrades = Counter(
    "quorin_schema_upgrades_total",
    "Segments that this process carried over to a newer schema.",
    ["schema"],
    registry=registry,
)
watchdog_ticks = Counter("quorin_watchdog_ticks_total", "Times the watchdog looked.", registry=registry)
watchdog_dead_processes = Counter(
    "quorin_watchdog_dead_processes_total", "Announcements of dead processes that were taken back.", registry=registry
)
watchdog_reclaimed_files = Counter(
    "quorin_watchdog_reclaimed_files_total", "Segment files of nobody that were removed.", ["reason"], registry=registry
)
watchdog_reclaimed_bytes = Counter(
    "quorin_watchdog_reclaimed_bytes_total", "Bytes of the segment files that were removed.", registry=registry
)
apply_delay_seconds = Histogram(
    "quorin_apply_delay_seconds",
    "Time from the making of an entry to its visibility in the segment, for the newest entry of each round.",
    ["schema"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600, 3600),
    registry=registry,
)


@lru_cache(maxsize=4096)
def labelled(metric: Any, *labels: str) -> Any:
    """The series of a metric with these labels; looking it up costs a tenth of what ``labels`` does."""
    return metric.labels(*labels)


def start_metrics_server(port: int = 9100, *, address: str = "127.0.0.1") -> tuple[WSGIServer, threading.Thread]:
    """Serve :data:`registry` over HTTP at ``/metrics``, from a daemon thread; gives the server and its thread.

    Only this machine can ask, unless ``address`` says otherwise (``0.0.0.0``: everybody).

    :raises OSError: if the port is taken.
    """
    return start_http_server(port, address, registry=registry)
