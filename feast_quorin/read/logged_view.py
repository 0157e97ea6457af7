"""The served log of reads on Feast's own path, where the request is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from feast_quorin.read.ages import limits_ns
from feast_quorin.read.request_id import current
from quorin.offline import ServedRows, ServedView

if TYPE_CHECKING:
    from datetime import timedelta

    import pyarrow as pa

    from feast_quorin.views import StoredView
    from quorin.offline import ServedLog


def log_view(
    log: ServedLog | None,
    view: StoredView,
    ids: Sequence[str],
    batch: pa.RecordBatch,
    limits: Mapping[str, timedelta],
    now_ns: int,
) -> None:
    """Log a read of one view, each entity once; nothing without a log. ``limits`` are ages at the time ``now_ns``, by
    feature.
    """
    if log is None or not log.is_sampled():
        return
    fields = {field.name: field for field in view.schema.fields if field.name in batch.schema.names}
    features = [(name, fields[stored.field]) for name, stored in view.features.items() if stored.field in fields]
    if not features:
        return
    ages = limits_ns([name for name, _ in features], limits)
    described = ServedView(view.name, view.schema.__name__, tuple(features), 0, view.schema.tie_breaker, ages)
    number = log.describe([described])
    if number >= 0:
        log.rows(number, current(), [ids], [0], [ServedRows.of(batch, now_ns)])
