"""A comparison as metrics in a file, for node_exporter's textfile collector."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quorin.engine.skew.kinds import SKEWED
from quorin.errors import needs_extra

if TYPE_CHECKING:
    from quorin.engine.skew.report import SkewReport


def write_textfile(reports: Sequence[SkewReport], file: Path) -> None:
    """Write the file, which gets its name when it is whole.

    :raises MissingExtraError: without the extra ``metrics``.
    """
    with needs_extra("metrics"):
        from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
    registry = CollectorRegistry()
    rows = Gauge("quorin_skew_entities", "Compared entities, by kind.", ["view", "kind"], registry=registry)
    values = Gauge(
        "quorin_skew_values",
        "Values that differ from the offline source, by kind of their row.",
        ["view", "field", "kind"],
        registry=registry,
    )
    stale = Gauge(
        "quorin_skew_staleness_seconds",
        "How much newer the offline source's events are than those of stale rows.",
        ["view", "quantile"],
        registry=registry,
    )
    ran = Gauge("quorin_skew_timestamp_seconds", "When the comparison ended.", ["view"], registry=registry)
    for report in reports:
        for kind, count in report.rows.items():
            rows.labels(report.name, kind).set(count)
        for field in report.fields:
            for kind in SKEWED:
                values.labels(report.name, field.name, kind).set(field.counts[kind])
        for quantile, seconds in (report.staleness_seconds or {}).items():
            stale.labels(report.name, quantile).set(seconds)
        ran.labels(report.name).set(time.time())
    try:
        write_to_textfile(str(file), registry)
    except OSError as error:
        error.filename = str(file)
        raise
