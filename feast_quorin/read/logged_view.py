"""The served log of reads on Feast's own path, where the request is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from feast_quorin.read.request_id import current
from quorin.offline import ServedView

if TYPE_CHECKING:
    from feast_quorin.views import StoredView
    from quorin.assembly import Columns
    from quorin.offline import ServedLog
    from quorin.schema import FeatureField


def log_view(log: ServedLog | None, view: StoredView, ids: Sequence[str], columns: Columns) -> None:
    """Log a read of one view on Feast's own path, where the request is not known: each entity once;
    nothing without a log.
    """
    if log is None or not columns.fields or not log.is_sampled():
        return
    names: dict[str, str] = {stored.field: name for name, stored in view.features.items()}
    features: list[tuple[str, FeatureField]] = [(names[field.name], field) for field in columns.fields]
    number = log.describe([ServedView(view.name, view.schema.__name__, tuple(features), 0, view.schema.tie_breaker)])
    if number >= 0:
        log.rows(number, current(), [ids], [0], [columns])
