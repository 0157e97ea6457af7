"""Readers that are bound to segments and a choice of fields: many rows as columns, or one entity as Python values."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.format.abi import ANY_POSITION, FOUND, MOVED
from quorin.engine.memory.parts import last_counted
from quorin.engine.reads.ages import age_limits
from quorin.engine.reads.column_plan import column_plan
from quorin.engine.reads.columns import Columns
from quorin.engine.reads.gather import COMPILED_GATHER
from quorin.engine.reads.many import read_many
from quorin.engine.reads.not_held import check_choice, note_not_held
from quorin.engine.reads.row import RowLayout, Rows, RowsLayout
from quorin.engine.rows.intake import id_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quorin.engine.arrays import Bytes, Int64s
    from quorin.engine.log.token import Token
    from quorin.engine.memory.view import SegmentView
    from quorin.engine.reads.ages import MaxAge
    from quorin.engine.reads.not_held import MissingPartitions
    from quorin.shm import Segment

_UINT8 = np.dtype(np.uint8)
_empty = np.empty


class ColumnReader:
    """Bound to a segment and a choice of fields: ``reader(entity_ids)`` returns
    :class:`quorin.engine.reads.columns.Columns`.
    """

    __slots__ = ("_ages", "_missing_partitions", "_names", "_positions", "_segment")

    def __init__(
        self,
        segment: Segment,
        fields: Sequence[str] | None = None,
        *,
        positions: bool = False,
        max_age: MaxAge | None = None,
        missing_partitions: MissingPartitions = "error",
    ) -> None:
        if missing_partitions != "error":
            check_choice(missing_partitions)
        self._missing_partitions = missing_partitions
        self._segment = segment
        self._names = None if fields is None else tuple(fields)
        self._positions = positions
        view = segment.current_view()
        plan = column_plan(view, self._names, positions=positions)
        self._ages = age_limits(max_age, plan.fields, view.schema.__name__)

    def __call__(self, entity_ids: Any, *, now_ns: int | None = None, at_most: int | Token | None = None) -> Columns:
        """The rows of entities, in the order of the ids. Batches release the GIL.

        Age limits count from ``now_ns``, by default the system's clock.

        :raises InconsistentReadError: for a row that was written after the log position ``at_most``, of several
            partitions a token.
        :raises NotHeldError: for an entity whose partition is not held, but with ``missing_partitions="mask"``.
        """
        ages = self._ages
        is_simple = ages is None and at_most is None
        if is_simple and type(entity_ids) is list and len(entity_ids) == 1 and type(entity_ids[0]) is str:
            view = self._segment.current_view()
            plan = column_plan(view, self._names, positions=self._positions)
            columns = Columns(plan, view, entity_ids, COMPILED_GATHER)
            if _read_one(plan.words(1), entity_ids[0], columns.buffer) == FOUND:
                columns.found[0] = True
                if self._missing_partitions == "mask":
                    columns.not_held = np.zeros(1, np.bool_)
                return columns
        ids = id_array(entity_ids)
        if ages is not None and now_ns is None:
            now_ns = time.time_ns()
        now = now_ns or 0
        while True:
            view = self._segment.current_view()
            plan = column_plan(view, self._names, positions=self._positions)
            columns = Columns(plan, view, ids, COMPILED_GATHER, ages, now)
            words = plan.words(len(ids), ages)
            if read_many(view, words, ids, columns.buffer, columns.found, math.nan, 0, now, at_most):
                if self._missing_partitions == "mask":
                    columns.not_held = np.empty(len(ids), np.bool_)
                if view.is_partial or columns.not_held is not None:
                    note_not_held(self._segment, view, ids, columns.found, self._missing_partitions, columns.not_held)
                return columns


class RowReader:
    """Bound to segments and choices of fields: ``reader(entity_id)`` returns a row of each as
    :class:`quorin.engine.reads.row.Rows`.
    """

    __slots__ = ("_bound", "_is_plain", "_max_ages", "_parts", "_positions")

    def __init__(
        self,
        parts: Sequence[tuple[Segment, Sequence[str] | None]],
        *,
        positions: bool = False,
        max_ages: Sequence[MaxAge | None] | None = None,
    ) -> None:
        self._positions = positions
        self._parts = [(segment, None if fields is None else tuple(fields)) for segment, fields in parts]
        self._max_ages = None if max_ages is None else list(max_ages)
        self._bound = self._bind()

    def __reduce__(self) -> tuple[type[RowReader], tuple[Any]]:
        return RowReader, (self._parts,)  # A segment says why it cannot be pickled.

    def __call__(self, entity_id: str, now_ns: int = 0, at_most: int | Token | None = None) -> Rows | None:
        """The rows of one entity; None where only :class:`ColumnReader` can tell: for an id that is not ASCII, or no id
        at all, for a row that was being replaced, for one written after the log position ``at_most`` (of several
        partitions a token), and for one that is not found where its partition may not be held.

        Age limits count from ``now_ns``, by default the system's clock.
        """
        layout, views = self._bound
        for segment, view in views:
            if segment._view is not view:
                layout, _ = self._bound = self._bind()
                break
        if type(entity_id) is not str:
            return None
        buffer: Any = _empty(layout.byte_count, _UINT8)
        if at_most is None and self._is_plain:
            code = _read_each(layout.words, entity_id, buffer)
        else:
            now_ns, highest = now_ns or time.time_ns(), ANY_POSITION if at_most is None else at_most
            if at_most is not None and layout.partition_count != 1:
                if not layout.partition_count:
                    return None
                counted = last_counted(views[0][1], at_most)  # It lives as long as its address is used.
                highest = counted.ctypes.data
            code = _read_each_limited(layout.words, entity_id, buffer, now_ns, highest)
            if layout.is_partial and code == FOUND and not buffer[-len(views) :].all():
                return None
        if code == FOUND:
            return Rows(layout, entity_id, buffer, layout.unpack(buffer), now_ns)
        if code == MOVED:
            self._bound = self._bind()
        return None

    def _bind(self) -> tuple[RowsLayout, list[tuple[Segment, SegmentView]]]:
        views = [(segment, segment.current_view()) for segment, _ in self._parts]
        layouts = []
        max_ages = self._max_ages or [None] * len(views)
        for (_, view), (_, names), max_age in zip(views, self._parts, max_ages, strict=True):
            plan = column_plan(view, names, positions=self._positions)
            layouts.append(RowLayout(view, plan, age_limits(max_age, plan.fields, view.schema.__name__)))
        layout = RowsLayout(layouts)
        self._is_plain = self._max_ages is None and not layout.is_partial
        return layout, views


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


def _read_each_limited(words: Int64s, entity_id: str, out: Bytes, now_ns: int, at_most: int) -> int:
    """Stands in for the kernel until the first read has loaded it."""
    global _read_each_limited
    from quorin.engine.kernels import read_each_limited as _read_each_limited

    return _read_each_limited(words, entity_id, out, now_ns, at_most)
