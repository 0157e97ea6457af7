"""The served log of a store: which requests are logged, and as what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_quorin.read.ages import limits_ns
from feast_quorin.read.request_id import current
from quorin.assembly import OneRow
from quorin.offline import ServedView

if TYPE_CHECKING:
    from feast_quorin.read.computed import Computed
    from feast_quorin.read.request import Column
    from feast_quorin.read.resolved import Resolved
    from quorin.assembly import Columns, Rows
    from quorin.offline import ServedLog


class ServedRequests:
    """Logs the requests of one choice of features, for rows with certain keys."""

    __slots__ = ("_groups", "_log", "_number", "_views")

    def __init__(self, log: ServedLog, views: Sequence[ServedView]) -> None:
        self._log = log
        self._views = views
        self._groups = [view.group for view in views]
        self._number = -1

    def row(self, rows: Rows) -> None:
        """Log a request of one entity, whose views were all read by one id."""
        if self._log.is_sampled() and (self._number >= 0 or self._is_described()):
            self._log.row(self._number, current(), rows)

    def rows(
        self,
        ids: Sequence[Any],
        reads: Sequence[OneRow | Columns],
        request: Mapping[Column, list[Any]] | None = None,
        computed: Iterable[Computed] = (),
    ) -> None:
        """Log a request: the entity ids of each group of views, what was read of each view, request data by column, and
        computed features.
        """
        if self._log.is_sampled() and (self._number >= 0 or self._is_described()):
            columns: list[Any] = [read.columns() if type(read) is OneRow else read for read in reads]
            data = _data(request or {}, computed)
            self._log.rows(self._number, current(), ids, self._groups, columns, data)

    def _is_described(self) -> bool:
        self._number = self._log.describe(self._views)
        return self._number >= 0


def served_requests(resolved: Resolved, groups: Sequence[Sequence[int]]) -> ServedRequests | None:
    """What logs requests whose views are read in groups, each by ids of its own; None without a served log."""
    log = resolved.views[0].reader.session.served
    if log is None:
        return None
    views = []
    for index, view in enumerate(resolved.views):
        fields = [view.codecs[name].field(view.fields[name]) for name in view.codecs]
        # In one order in every process: Feast resolves the features of a view in any.
        own = sorted((one for one in resolved.inputs if one.view == index), key=lambda one: one.name)
        features = tuple((feature.name, fields[feature.column]) for feature in own)
        names = [*view.codecs]
        ages = limits_ns([names[feature.column] for feature in own], view.limits)
        group = next(number for number, own in enumerate(groups) if index in own)
        name, schema = view.table.projection.name_to_use(), view.reader.schema
        views.append(ServedView(name, schema.__name__, features, group, schema.tie_breaker, ages))
    return ServedRequests(log, views)


def _data(request: Mapping[Column, list[Any]], computed: Iterable[Computed]) -> bytes:
    """Request data and computed features as an Arrow IPC stream."""
    columns = {f"request:{column.name}": _array(values) for column, values in request.items()}
    columns |= {f"computed:{one.name}": one.arrow()[1] for one in computed}
    if not columns:
        return b""
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_pydict(columns)
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _array(values: list[Any]) -> pa.Array:
    """Values of a request; as JSON where they are not of one type."""
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError):
        return pa.array([json.dumps(value, default=str) for value in values])
