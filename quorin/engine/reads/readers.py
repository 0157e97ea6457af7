"""Readers that are bound to segments and a choice of fields: many rows as columns, or one entity as Python values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.format.abi import FOUND, MOVED
from quorin.engine.reads.column_plan import column_plan
from quorin.engine.reads.columns import Columns
from quorin.engine.reads.gather import COMPILED_GATHER
from quorin.engine.reads.many import read_many
from quorin.engine.reads.row import RowLayout, Rows, RowsLayout
from quorin.engine.rows.intake import id_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quorin.engine.arrays import Bytes, Int64s
    from quorin.engine.memory.view import SegmentView
    from quorin.shm import Segment

_UINT8 = np.dtype(np.uint8)
_empty = np.empty


class ColumnReader:
    """Bound to a segment and a choice of fields: ``reader(entity_ids)`` returns
    :class:`quorin.engine.reads.columns.Columns`.
    """

    __slots__ = ("_names", "_positions", "_segment")

    def __init__(self, segment: Segment, fields: Sequence[str] | None = None, *, positions: bool = False) -> None:
        self._segment = segment
        self._names = None if fields is None else tuple(fields)
        self._positions = positions
        column_plan(segment.current_view(), self._names, positions=positions)

    def __call__(self, entity_ids: Any) -> Columns:
        """The rows of entities, in the order of the ids. Batches release the GIL."""
        if type(entity_ids) is list and len(entity_ids) == 1 and type(entity_ids[0]) is str:
            view = self._segment.current_view()
            plan = column_plan(view, self._names, positions=self._positions)
            columns = Columns(plan, view, entity_ids, COMPILED_GATHER)
            if _read_one(plan.words(1), entity_ids[0], columns.buffer) == FOUND:
                columns.found[0] = True
                return columns
        ids = id_array(entity_ids)
        while True:
            view = self._segment.current_view()
            plan = column_plan(view, self._names, positions=self._positions)
            columns = Columns(plan, view, ids, COMPILED_GATHER)
            if read_many(view, plan.words(len(ids)), ids, columns.buffer, columns.found, math.nan):
                return columns


class RowReader:
    """Bound to segments and choices of fields: ``reader(entity_id)`` returns a row of each as
    :class:`quorin.engine.reads.row.Rows`.
    """

    __slots__ = ("_bound", "_parts", "_positions")

    def __init__(self, parts: Sequence[tuple[Segment, Sequence[str] | None]], *, positions: bool = False) -> None:
        self._positions = positions
        self._parts = [(segment, None if fields is None else tuple(fields)) for segment, fields in parts]
        self._bound = self._bind()

    def __reduce__(self) -> tuple[type[RowReader], tuple[Any]]:
        return RowReader, (self._parts,)  # A segment says why it cannot be pickled.

    def __call__(self, entity_id: str) -> Rows | None:
        """The rows of one entity; None where only :class:`ColumnReader` can tell: for an id that is not ASCII, or no id
        at all, and for a row that was being replaced.
        """
        layout, views = self._bound
        for segment, view in views:
            if segment._view is not view:
                layout, _ = self._bound = self._bind()
                break
        if type(entity_id) is not str:
            return None
        buffer: Any = _empty(layout.byte_count, _UINT8)
        code = _read_each(layout.words, entity_id, buffer)
        if code == FOUND:
            return Rows(layout, entity_id, buffer, layout.unpack(buffer))
        if code == MOVED:
            self._bound = self._bind()
        return None

    def _bind(self) -> tuple[RowsLayout, list[tuple[Segment, SegmentView]]]:
        views = [(segment, segment.current_view()) for segment, _ in self._parts]
        plans = [
            column_plan(view, names, positions=self._positions)
            for (_, view), (_, names) in zip(views, self._parts, strict=True)
        ]
        return RowsLayout([RowLayout(view, plan) for (_, view), plan in zip(views, plans, strict=True)]), views


def _read_one(words: Int64s, entity_id: str, out: Bytes) -> int:
    """Stands in for the kernel until the first read has loaded it."""
    global _read_one
    from quorin.engine.kernels import read_one as _read_one

    return _read_one(words, entity_id, out)


def _read_each(words: Int64s, entity_id: str, out: Bytes) -> int:
    """Stands in for the kernel until the first read has loaded it."""
    global _read_each
    from quorin.engine.kernels import read_each as _read_each

    return _read_each(words, entity_id, out)
