"""A compiled request for rows with certain columns: reads them, and computes what is computed on demand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID
from feast.value_type import ValueType

from feast_quorin import feast_private
from feast_quorin.read.on_demand import compute
from feast_quorin.read.options import finish
from feast_quorin.read.request import Column, RequestData, entity_id, entity_ids, is_convertible, key_column
from feast_quorin.read.response import LazyResponse
from feast_quorin.read.row_response import RowResponse
from feast_quorin.read.served import served_requests
from feast_quorin.read.together import together
from feast_quorin.read.view_reader import EntityReader
from quorin.assembly import OneRow, all_of
from quorin.errors import EntityIdError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_quorin.feast_private import RequestContext
    from feast_quorin.read.options import ReadOptions
    from feast_quorin.read.resolved import Resolved, ViewPlan
    from quorin.assembly import Asking, Rows


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of the rows by what they are for, each with its index there. No view uses the ``unused``."""

    keys: tuple[Column, ...]
    key_indexes: tuple[int, ...]
    request: tuple[Column, ...]
    request_indexes: tuple[int, ...]
    unused_indexes: tuple[int, ...]


class Shape:
    """A resolved choice of features, for rows with certain columns: join keys, which the response returns, request data
    for on-demand views, and columns that no view uses. ``keys_of_views`` has for each view the indexes of its join
    keys, in the order of their names.
    """

    __slots__ = (
        "_columns",
        "_groups",
        "_has_keys_only",
        "_has_limits",
        "_is_quick",
        "_keys_of_views",
        "_resolved",
        "_served",
        "_session",
        "_settled_ms",
        "_stored_views",
        "_uses_all_keys",
        "keys",
    )

    def __init__(self, resolved: Resolved, columns: _Columns, keys_of_views: tuple[tuple[int, ...], ...]) -> None:
        self._resolved = resolved
        self._columns = columns
        self.keys = columns.keys
        self._keys_of_views = keys_of_views
        self._session = resolved.views[0].reader.session
        self._settled_ms = self._session.settings.consistent_timeout_ms
        self._stored_views = [view.reader.view for view in resolved.views]
        self._has_limits = any(view.limits for view in resolved.views)
        self._has_keys_only = len(columns.keys) > 0 and not columns.request and not columns.unused_indexes
        self._uses_all_keys = {index for keys in keys_of_views for index in keys} == {*range(len(columns.keys))}
        self._groups = [
            _ViewGroup(keys, columns.keys, resolved.views, keys_of_views) for keys in dict.fromkeys(keys_of_views)
        ]
        self._served = served_requests(resolved, [group.view_indexes for group in self._groups])
        has_one_id = len(self._groups) == 1 and self._uses_all_keys
        self._is_quick = self._has_keys_only and has_one_id and self._settled_ms is None and not resolved.transforms

    def answer(self, columns: list[list[Any]], metrics: Any, options: ReadOptions) -> LazyResponse | None:
        """Read the entities of a request; None if only Feast can answer or refuse it. This thread waits for other
        machines, if rows are there.

        ``metrics`` is ``feast.metrics`` if it counts online reads, else None.

        :raises SegmentNotFoundError: if a view was never applied, or was removed.
        :raises NotYetAppliedError, TokenError: for what :mod:`feast_quorin.read.options` says.
        """
        is_quick = self._is_quick and len(columns[0]) == 1 and metrics is None
        if is_quick and options.at_least is None and options.consistent_ms is None:
            rows = self._groups[0].row(columns, time.time_ns() if self._has_limits else 0, None)
            if rows is not None:
                return self._row_response(columns, rows)
        return finish(self.asking(columns, metrics, options))

    def asking(self, columns: list[list[Any]], metrics: Any, options: ReadOptions) -> Asking[LazyResponse | None]:
        """The same, which may ask other machines in between."""
        started = 0.0 if metrics is None else time.monotonic()
        token = options.at_least
        if token is not None:
            for view in self._resolved.views:
                view.reader.wait(token)
        count = len(columns[0])
        data: list[list[Any]] | None = None
        if not self._has_keys_only:
            data = self._request_data(columns)
            if data is None:
                return None
            columns = [columns[index] for index in self._columns.key_indexes]
        resolved = self._resolved
        if options.consistent_ms is None and self._settled_ms is None:
            rows, keys, ids, reads = yield from self._read_all(columns, count, None)
        else:
            # Rows at one position are of one log, so no other machine has any.
            rows, keys, ids, reads = together(
                self._session, self._stored_views, lambda at_most: finish(self._read_all(columns, count, at_most))
            )
        if rows is not None and len(rows) == 1 and metrics is None and not resolved.transforms:
            return self._row_response(columns, rows[0])
        if rows is not None:
            ids, reads = [[row.entity_id] for row in rows], self._by_view(rows)
        if reads is None:
            return None
        if metrics is not None:
            self._report(metrics, reads, count, time.monotonic() - started)
        if not resolved.transforms:
            if self._served is not None:
                self._served.rows(ids, reads)
            return LazyResponse.of(resolved, self.keys, keys, reads)
        key_values = [*keys, *(data or ())]
        inputs = LazyResponse.of(resolved, (*self.keys, *self._columns.request), key_values, reads, resolved.inputs)
        computed = compute(resolved.transforms, inputs, resolved.full_names)
        if self._served is not None:
            self._served.rows(ids, reads, dict(zip(self._columns.request, data or (), strict=True)), computed)
        return LazyResponse.of(resolved, self.keys, keys, reads, computed=computed)

    def reads(self, columns: list[list[Any]]) -> list[Any] | None:
        """What is read of each view for the entities of a request; None if only Feast can judge the keys."""
        keys = [columns[index] for index in self._columns.key_indexes]
        return finish(self._read(keys, len(columns[0]), time.time_ns(), None))[2]

    def _row_response(self, columns: list[list[Any]], rows: Rows) -> RowResponse:
        if self._served is not None:
            self._served.row(rows)
        return RowResponse(self._resolved, self.keys, columns, rows)

    def _read_all(
        self, columns: list[list[Any]], count: int, at_most: int | None
    ) -> Asking[tuple[list[Rows] | None, list[list[Any]], list[Any], list[Any] | None]]:
        """What was read up to a log position: the rows of a request's one entity, or the join keys as Feast returns
        them, the entity ids of each group, and what was read of each view, None if only Feast can judge.
        """
        now_ns = time.time_ns() if self._has_limits else 0
        rows = self._read_row(columns, now_ns, at_most) if count == 1 and self._uses_all_keys else None
        if rows is not None:
            return rows, columns, [], None
        return None, *(yield from self._read(columns, count, now_ns, at_most))

    def _request_data(self, columns: list[list[Any]]) -> list[list[Any]] | None:
        if any(not is_convertible(columns[index]) for index in self._columns.unused_indexes):
            return None
        pairs = zip(self._columns.request, self._columns.request_indexes, strict=True)
        return _all([column.normalised(columns[index]) for column, index in pairs])

    def _read_row(self, columns: list[list[Any]], now_ns: int, at_most: int | None) -> list[Rows] | None:
        """The rows of a request's one entity, by group of views; None if this fast path does not apply."""
        rows_of_groups: list[Rows] = []
        for group in self._groups:
            rows = group.row(columns, now_ns, at_most)
            if rows is None:
                return None
            rows_of_groups.append(rows)
        return rows_of_groups

    def _by_view(self, rows_of_groups: list[Rows]) -> list[Any]:
        """The rows in the order of the views."""
        by_view: dict[int, OneRow] = {}
        for group, rows in zip(self._groups, rows_of_groups, strict=True):
            by_view.update((view, rows[index]) for index, view in enumerate(group.view_indexes))
        return [by_view[view] for view in range(len(by_view))]

    def _read(
        self, columns: list[list[Any]], count: int, now_ns: int, at_most: int | None
    ) -> Asking[tuple[list[list[Any]], list[Any], list[Any] | None]]:
        """The join keys as Feast returns them, the entity ids of each group, and what was read of each view; None if
        only Feast can judge.
        """
        views = self._resolved.views
        keys = _all([key.normalised(values) for key, values in zip(self.keys, columns, strict=True)])
        if keys is None:
            return [], [], None
        try:
            ids = {group.key_indexes: group.ids(keys, count) for group in self._groups}
        except ValueError:  # A value cannot be a key.
            return [], [], None
        try:
            pairs = zip(views, self._keys_of_views, strict=True)
            reads = yield from all_of([view.reader.asking(ids[indexes], now_ns, at_most) for view, indexes in pairs])
        except EntityIdError:
            return [], [], None
        return keys, list(ids.values()), reads

    def _report(self, metrics: Any, reads: list[Any], count: int, seconds: float) -> None:
        """Tell Feast's metrics what Feast's generic path would."""
        for view, read in zip(self._resolved.views, reads, strict=True):
            if type(read) is OneRow:
                present = len(view.requested) if read.values else 0
            else:
                present = int(read.found.sum()) * len(read.fields)
            metrics.track_feature_statuses(view.table.name, present, len(view.requested) * count - present)
        metrics.track_online_store_read(seconds)


class _ViewGroup:
    """The views with the same join keys, so that one entity id serves them all.

    ``key_indexes`` are the indexes of the join keys in the request, ``view_indexes`` those of the views in the plan.
    """

    __slots__ = ("_keys", "_read", "_text", "key_indexes", "view_indexes")

    def __init__(
        self,
        key_indexes: tuple[int, ...],
        keys: Sequence[Column],
        views: Sequence[ViewPlan],
        keys_of_views: Sequence[tuple[int, ...]],
    ) -> None:
        self.key_indexes = key_indexes
        self.view_indexes = [index for index, other in enumerate(keys_of_views) if other == key_indexes]
        own_views = [views[index] for index in self.view_indexes]
        self._keys = [keys[index] for index in key_indexes]
        self._text = self._keys[0].text if len(key_indexes) == 1 else None
        self._read = EntityReader([view.reader for view in own_views])

    def row(self, columns: list[list[Any]], now_ns: int, at_most: int | None) -> Rows | None:
        """The views' rows of a request's one entity; None if this fast path does not apply."""
        text = self._composed(columns) if self._text is None else self._text(columns[self.key_indexes[0]][0])
        return None if text is None else self._read(text, now_ns, at_most)

    def ids(self, keys: list[list[Any]], count: int) -> pa.Array:
        """The ids of many entities, from normalised keys.

        :raises ValueError: for values that cannot be keys.
        """
        if len(self.key_indexes) == 1:
            return self._keys[0].ids(keys[self.key_indexes[0]])
        components = [key.texts(keys[index]) for key, index in zip(self._keys, self.key_indexes, strict=True)]
        return pa.array(entity_ids(components, count), pa.string())

    def _composed(self, columns: list[list[Any]]) -> str | None:
        texts = [key.text(columns[index][0]) for key, index in zip(self._keys, self.key_indexes, strict=True)]
        components = [text for text in texts if text is not None]
        return entity_id(components) if len(components) == len(texts) else None


def shape_for(resolved: Resolved, context: RequestContext, names: tuple[str, ...]) -> Shape | None:
    """The shape for rows with these columns; None if only Feast can answer or refuse them."""
    request = {index: name for index, name in enumerate(names) if name in context.request_data}
    keys = {index: name for index, name in enumerate(names) if name in context.join_keys and index not in request}
    unused = [index for index in range(len(names)) if index not in request and index not in keys]
    feature_names = {*context.result_names, *resolved.feature_types, *(feature.name for feature in resolved.inputs)}
    if len(request) < len(context.request_data) or not feature_names.isdisjoint([*request.values(), *keys.values()]):
        return None
    if any(names[index] in context.join_key_of_entity for index in unused):
        return None  # An entity's name instead of its join key, which Feast warns about.
    key_indexes: dict[str, Any] = {name: index for index, name in enumerate(keys.values())}
    key_indexes |= {DUMMY_ENTITY_ID: -1} if context.is_entityless else {}
    keys_of_views = []
    for table, _ in context.grouped:
        own_keys = feast_private.entity_values(table, context.join_key_of_entity, key_indexes)
        if not own_keys or (DUMMY_ENTITY_ID in own_keys and len(own_keys) > 1):
            return None
        keys_of_views.append(tuple(own_keys[name] for name in sorted(own_keys) if name != DUMMY_ENTITY_ID))
    columns = _Columns(
        keys=tuple(key_column(name, context.join_key_types.get(name)) for name in keys.values()),
        key_indexes=tuple(keys),
        request=tuple(RequestData(name, ValueType.UNKNOWN) for name in request.values()),
        request_indexes=tuple(request),
        unused_indexes=tuple(unused),
    )
    return Shape(resolved, columns, tuple(keys_of_views))


def _all(columns: list[list[Any] | None]) -> list[list[Any]] | None:
    """The columns, unless one is missing."""
    present = [values for values in columns if values is not None]
    return present if len(present) == len(columns) else None
