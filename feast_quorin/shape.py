"""A compiled request for rows with certain columns: reads them, and computes what is computed on demand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_quorin.on_demand import compute
from feast_quorin.request import Column, entity_id, entity_ids, is_passed_over
from feast_quorin.response import LazyResponse
from quorin.assembly import OneRow
from quorin.errors import EntityIdError

if TYPE_CHECKING:
    from feast_quorin.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Which columns of the rows are what."""

    keys: tuple[Column, ...]
    key_places: tuple[int, ...]
    request: tuple[Column, ...]
    request_places: tuple[int, ...]
    others: tuple[int, ...]


class Shape:
    """A plan for rows with certain columns: join keys to give back, the request's data for on-demand views, and others,
    which nobody asked for. ``parts`` says for each view which join keys make its ids.
    """

    __slots__ = ("_columns", "_is_plain", "_parts", "keys", "plan")

    def __init__(self, plan: Plan, *, parts: tuple[tuple[int, ...], ...], **columns: Any) -> None:
        self.plan = plan
        self._columns = _Columns(**columns)
        self.keys = self._columns.keys
        self._parts = parts
        self._is_plain = len(self.keys) > 0 and not self._columns.request and not self._columns.others

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
        keys, reads = self._read(columns, count)
        if reads is None:
            return None
        if metrics is not None:
            self._report(metrics, reads, count, time.monotonic() - started)
        plan = self.plan
        if not plan.transforms:
            made = LazyResponse if type(reads[0]) is OneRow else LazyResponse.of
            return made(plan, self.keys, keys, reads)
        inputs = LazyResponse.of(plan, (*self.keys, *self._columns.request), [*keys, *(data or ())], reads, plan.inputs)
        computed = compute(plan.transforms, inputs, plan.full_names)
        return LazyResponse.of(plan, self.keys, keys, reads, computed=computed)

    def _request_data(self, columns: list[list[Any]]) -> list[list[Any]] | None:
        wanted = self._columns
        if any(not is_passed_over(columns[place]) for place in wanted.others):
            return None
        pairs = zip(wanted.request, wanted.request_places, strict=True)
        return _all([column.normalised(columns[place]) for column, place in pairs])

    def _read(self, columns: list[list[Any]], count: int) -> tuple[list[list[Any]], list[Any] | None]:
        """The join keys as Feast gives them back, and what was read; None where Feast has to judge."""
        if count == 1:
            rows = self._read_row(columns)
            if rows is not None:
                return columns, rows
        keys = _all([key.normalised(values) for key, values in zip(self.keys, columns, strict=True)])
        return ([], None) if keys is None else (keys, self._read_rows(keys, count))

    def _read_row(self, columns: list[list[Any]]) -> list[Any] | None:
        """One row, the quick way; None where it does not serve."""
        texts = []
        for key, column in zip(self.keys, columns):  # noqa: B905 - as many by construction, and this is the hot path
            text = key.text(column[0])
            if text is None:
                return None
            texts.append(text)
        rows = []
        for view, part in zip(self.plan.views, self._parts):  # noqa: B905
            row = view.reader.one(texts[part[0]] if len(part) == 1 else entity_id([texts[i] for i in part]))
            if row is None or (view.max_age_ns and row.values and row.values[0] < time.time_ns() - view.max_age_ns):
                return None
            rows.append(row)
        return rows

    def _read_rows(self, keys: list[list[Any]], count: int) -> list[Any] | None:
        """All rows; None where an id can't be made of a key."""
        used = {place for part in self._parts for place in part}
        try:
            texts = {place: self.keys[place].texts(keys[place]) for place in used}
            ids = [entity_ids([texts[place] for place in part], count) for part in self._parts]
        except ValueError:
            return None
        try:
            reads = [view.reader.many(many) for view, many in zip(self.plan.views, ids, strict=True)]
        except EntityIdError:
            return None
        for view, read in zip(self.plan.views, reads, strict=True):
            if view.max_age_ns:
                read.hide(read.found & (read.event_time_ns < time.time_ns() - view.max_age_ns))
        return reads

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
