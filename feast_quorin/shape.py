"""A compiled request for rows with certain columns: reads them, and computes what is computed on demand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_quorin.on_demand import compute
from feast_quorin.request import Column, entity_id, entity_ids, is_passed_over
from feast_quorin.response import LazyResponse, RowResponse
from feast_quorin.view_reader import EntityReader
from quorin.assembly import OneRow
from quorin.errors import EntityIdError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_quorin.plan import Plan, ViewPlan
    from quorin.assembly import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Which columns of the rows are what."""

    keys: tuple[Column, ...]
    key_places: tuple[int, ...]
    request: tuple[Column, ...]
    request_places: tuple[int, ...]
    others: tuple[int, ...]


class _Entity:
    """Join keys that make an id, by their places in ``part``, and the views that are read with it, by ``numbers``."""

    __slots__ = ("_ages", "_keys", "_read", "_text", "numbers", "part")

    def __init__(
        self, part: tuple[int, ...], keys: Sequence[Column], views: Sequence[ViewPlan], parts: Sequence[tuple[int, ...]]
    ) -> None:
        self.part = part
        self.numbers = [number for number, other in enumerate(parts) if other == part]
        chosen = [views[number] for number in self.numbers]
        self._keys = [keys[place] for place in part]
        self._text = self._keys[0].text if len(part) == 1 else None
        self._read = EntityReader([view.reader for view in chosen])
        self._ages = [(place, view.max_age_ns) for place, view in enumerate(chosen) if view.max_age_ns]

    def row(self, columns: list[list[Any]]) -> Rows | None:
        """The rows of the views for the one entity of a request; None where the quick way does not serve."""
        text = self._composed(columns) if self._text is None else self._text(columns[self.part[0]][0])
        rows = None if text is None else self._read(text)
        return None if rows is None or (self._ages and self._has_old(rows)) else rows

    def ids(self, keys: list[list[Any]], count: int) -> pa.Array:
        """The ids of many entities, from normalised keys.

        :raises ValueError: for values that are no keys.
        """
        if len(self.part) == 1:
            return self._keys[0].ids(keys[self.part[0]])
        components = [key.texts(keys[place]) for key, place in zip(self._keys, self.part, strict=True)]
        return pa.array(entity_ids(components, count), pa.string())

    def _composed(self, columns: list[list[Any]]) -> str | None:
        texts = [key.text(columns[place][0]) for key, place in zip(self._keys, self.part, strict=True)]
        known = [text for text in texts if text is not None]
        return entity_id(known) if len(known) == len(texts) else None

    def _has_old(self, rows: Rows) -> bool:
        """Whether one of the rows is older than its view allows."""
        now = time.time_ns()
        return any(rows[place].values and rows[place].values[0] < now - most for place, most in self._ages)


class Shape:
    """A plan for rows with certain columns: join keys to give back, the request's data for on-demand views, and others,
    which nobody asked for. ``parts`` says for each view which join keys make its ids.
    """

    __slots__ = ("_columns", "_entities", "_is_plain", "_parts", "_uses_all_keys", "keys", "plan")

    def __init__(self, plan: Plan, *, parts: tuple[tuple[int, ...], ...], **columns: Any) -> None:
        self.plan = plan
        self._columns = _Columns(**columns)
        self.keys = self._columns.keys
        self._parts = parts
        self._is_plain = len(self.keys) > 0 and not self._columns.request and not self._columns.others
        self._uses_all_keys = {place for part in parts for place in part} == {*range(len(self.keys))}
        self._entities = [_Entity(part, self.keys, plan.views, parts) for part in dict.fromkeys(parts)]

    def answer(self, columns: list[list[Any]], metrics: Any = None) -> LazyResponse | None:
        """Read what the rows ask for; None where they are for Feast to judge.

        ``metrics`` is ``feast.metrics``, if that is to hear of it.

        :raises SegmentNotFoundError: if a view was never applied, or was removed.
        """
        started = 0.0 if metrics is None else time.monotonic()
        count = len(columns[0])
        data: list[list[Any]] | None = None
        if not self._is_plain:
            data = self._request_data(columns)
            if data is None:
                return None
            columns = [columns[place] for place in self._columns.key_places]
        plan = self.plan
        rows = self._read_row(columns) if count == 1 and self._uses_all_keys else None
        if rows is not None and len(rows) == 1 and metrics is None and not plan.transforms:
            return RowResponse(plan, self.keys, columns, rows[0])
        keys, reads = self._read(columns, count) if rows is None else (columns, self._by_view(rows))
        if reads is None:
            return None
        if metrics is not None:
            self._report(metrics, reads, count, time.monotonic() - started)
        if not plan.transforms:
            return LazyResponse.of(plan, self.keys, keys, reads)
        inputs = LazyResponse.of(plan, (*self.keys, *self._columns.request), [*keys, *(data or ())], reads, plan.inputs)
        computed = compute(plan.transforms, inputs, plan.full_names)
        return LazyResponse.of(plan, self.keys, keys, reads, computed=computed)

    def _request_data(self, columns: list[list[Any]]) -> list[list[Any]] | None:
        wanted = self._columns
        if any(not is_passed_over(columns[place]) for place in wanted.others):
            return None
        pairs = zip(wanted.request, wanted.request_places, strict=True)
        return _all([column.normalised(columns[place]) for column, place in pairs])

    def _read_row(self, columns: list[list[Any]]) -> list[Rows] | None:
        """The rows of the one entity that each part of the key names; None where the quick way does not serve."""
        found: list[Rows] = []
        for entity in self._entities:
            rows = entity.row(columns)
            if rows is None:
                return None
            found.append(rows)
        return found

    def _by_view(self, found: list[Rows]) -> list[Any]:
        """The rows in the order of the plan's views."""
        rows: dict[int, OneRow] = {}
        for entity, read in zip(self._entities, found, strict=True):
            rows.update((number, read[place]) for place, number in enumerate(entity.numbers))
        return [rows[number] for number in range(len(rows))]

    def _read(self, columns: list[list[Any]], count: int) -> tuple[list[list[Any]], list[Any] | None]:
        """The join keys as Feast gives them back, and what was read of each view; None where Feast has to judge."""
        keys = _all([key.normalised(values) for key, values in zip(self.keys, columns, strict=True)])
        if keys is None:
            return [], None
        try:
            ids = {entity.part: entity.ids(keys, count) for entity in self._entities}
        except ValueError:  # No id can be made of a key.
            return [], None
        try:
            reads = [view.reader(ids[part]) for view, part in zip(self.plan.views, self._parts, strict=True)]
        except EntityIdError:
            return [], None
        for view, read in zip(self.plan.views, reads, strict=True):
            if view.max_age_ns:
                read.hide(read.found & (read.event_time_ns < time.time_ns() - view.max_age_ns))
        return keys, reads

    def _report(self, metrics: Any, reads: list[Any], count: int, seconds: float) -> None:
        """Tell Feast's metrics what it would count itself."""
        for view, read in zip(self.plan.views, reads, strict=True):
            if type(read) is OneRow:
                present = len(view.requested) if read.values else 0
            else:
                present = int(read.found.sum()) * len(read.fields)
            metrics.track_feature_statuses(view.table.name, present, len(view.requested) * count - present)
        metrics.track_online_store_read(seconds)


def _all(columns: list[list[Any] | None]) -> list[list[Any]] | None:
    """The columns, unless one is missing."""
    known = [values for values in columns if values is not None]
    return known if len(known) == len(columns) else None
