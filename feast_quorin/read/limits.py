"""What may be served: rows that have not expired, of a segment that does not lag too far behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from feast_quorin.read.options import finish
from quorin import assembly, metrics
from quorin.errors import StaleReplicaError
from quorin.wal import position_at

if TYPE_CHECKING:
    from feast_quorin.config import StoreSettings
    from feast_quorin.views import StoredView
    from quorin.assembly import Asking, Columns
    from quorin.shm import Segment

    Routed = Callable[..., Callable[..., Asking[Columns]]]


def column_reader(
    segment: Segment,
    fields: Sequence[str],
    key_ttl_seconds: int | None,
    limits: Mapping[str, timedelta] | None = None,
    routed: Routed | None = None,
) -> Callable[..., Columns]:
    """A function that reads fields of a segment's rows as columns, with their positions and age limits for some of the
    fields. Rows that were last written longer ago than ``key_ttl_seconds`` are not found. ``routed`` makes the function
    for a segment that holds some partitions; without it, rows of the others are not read.
    """
    asks = column_asking(segment, fields, key_ttl_seconds, limits, routed)
    return lambda ids, **options: finish(asks(ids, **options))


def column_asking(
    segment: Segment,
    fields: Sequence[str],
    key_ttl_seconds: int | None,
    limits: Mapping[str, timedelta] | None = None,
    routed: Routed | None = None,
) -> Callable[..., Asking[Columns]]:
    """:func:`column_reader`, whose function may ask other machines in between."""
    if routed is not None and segment.partitioning.is_partial:
        read = routed(segment, fields, limits)
    else:
        read = _held(assembly.column_reader(segment, fields, positions=True, max_age=limits or None))
    if not key_ttl_seconds:
        return read

    def read_living(ids: Any, **options: Any) -> Asking[Columns]:
        columns = yield from read(ids, **options)
        least = position_at(time.time_ns() // 10**6 - 1000 * key_ttl_seconds)
        columns.drop(columns.found & (columns.positions < least))
        return columns

    return read_living


def _held(read: Callable[..., Columns]) -> Callable[..., Asking[Columns]]:
    def asking(ids: Any, **options: Any) -> Asking[Columns]:
        return read(ids, **options)
        yield  # It asks nobody.

    return asking


def check_fresh(settings: StoreSettings, view: StoredView, segment: Segment) -> None:
    """Refuse or count a read of rows that may be older than ``max_lag_seconds``. A pinned segment is old on purpose.

    :raises StaleReplicaError: if they are, unless ``stale_reads: serve``.
    """
    limit = settings.max_lag_seconds
    if limit is None or segment.is_pinned:
        return
    lag = segment.confirmed_age_seconds()
    if lag > limit:
        metrics.stale_reads.labels(view.schema.__name__).inc()
        if settings.stale_reads == "raise":
            raise StaleReplicaError(f"feature view {view.name!r}", lag, limit)
