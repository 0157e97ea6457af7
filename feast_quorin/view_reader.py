"""Reads of one view for one choice of features: bound to its segment once, followed as it is replaced.

One entity is read as a tuple of Python values (:class:`OneRow`), many as typed columns
(:class:`quorin.columnar.Columns`). Both are copies of whole rows: what is decoded later is what was read.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.abi import FOUND, MISSING
from quorin.assembly import ColumnReader, column_reader
from quorin.columnar import PLAIN_GATHER, ColumnPlan, Columns, column_plan
from quorin.errors import SchemaMismatchError, SegmentClosedError, SegmentNotFoundError
from quorin.schema import dtype

if TYPE_CHECKING:
    from feast_quorin.engine import Engine
    from feast_quorin.views import StoredView
    from quorin.shm import Segment

LOOK_SECONDS = 0.005
"""How often a busy reader looks whether another process has removed its segment, which no reader is told."""

_ATTEMPTS = 6
_CODES = {dtype.float32: "f", dtype.float64: "d", dtype.int32: "i", dtype.int64: "q", dtype.bool: "?"}
_HEAP_CELL = "QII"


class ViewReader:
    """One view, and the features that a request wants of it. Threads may share it.

    ``engine`` must be this process's own.
    """

    __slots__ = ("_bound", "_engine", "_fields", "_look_again", "_name", "_view")

    def __init__(self, engine: Engine, view: StoredView, features: Sequence[str]) -> None:
        self._engine = engine
        self._view = view
        self._name = view.schema.__name__
        self._fields = [view.features[name].field for name in features]
        self._bound: _Bound | None = None
        self._look_again = 0.0

    def one(self, entity_id: str) -> OneRow | None:
        """One entity, or None where only :meth:`many` serves: not found at once, or not all the fields are there."""
        bound = self._bound
        if bound is None or not self._is_fresh(bound) or len(bound.fields) < len(self._fields):
            return None
        return bound.rows.read(entity_id)

    def many(self, entity_ids: list[str]) -> Columns:
        """Many entities. The columns are those of the wanted fields that the segment has: all of them, unless the view
        changed and this process has not heard of it yet.

        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._bind().many(entity_ids)
            except (SchemaMismatchError, SegmentNotFoundError, SegmentClosedError):
                self._bound = None
                if not self._engine.forget(self._view):
                    raise
        raise SegmentNotFoundError(
            f"feature view {self._view.name!r}: its segment was replaced {_ATTEMPTS} times in one read"
        )

    def _bind(self) -> _Bound:
        bound = self._bound
        if bound is not None and self._is_fresh(bound):
            return bound
        now = time.monotonic()
        segment = self._engine.reader(self._view)
        if bound is None or bound.segment is not segment:
            stored = {field.name for field in segment.schema.fields}
            self._bound = bound = _Bound(segment, [name for name in self._fields if name in stored])
        self._look_again = now + LOOK_SECONDS
        return bound

    def _is_fresh(self, bound: _Bound) -> bool:
        return time.monotonic() < self._look_again and self._engine.is_open(self._name, bound.segment)


class _Bound:
    """A segment, the fields that are read of it, and what reads them."""

    __slots__ = ("_read", "fields", "rows", "segment")

    def __init__(self, segment: Segment, fields: list[str]) -> None:
        self.segment = segment
        self.fields = tuple(fields)
        self.rows = RowLayout(column_plan(segment.current_view(), self.fields))
        self._read: ColumnReader = column_reader(segment, fields)

    def many(self, entity_ids: list[str]) -> Columns:
        columns = self._read(entity_ids)
        view = self.segment.current_view()
        if self.rows.plan.view is not view:
            self.rows = RowLayout(column_plan(view, self.fields))
        return columns


class RowLayout:
    """How the columns of one row stand in a buffer: where each field is among the values that ``struct`` unpacks."""

    __slots__ = ("_bytes", "_struct", "_words", "heap", "plan", "required", "slots")

    def __init__(self, plan: ColumnPlan) -> None:
        self.plan = plan
        self.heap = plan.view.mapping.memory[plan.view.layout.heap_offset :]
        self._words = plan.words(1)
        self._bytes = plan.row_bytes
        codes, self.slots, slot = ["<q"], [0] * len(plan.fields), 1
        for index in sorted(range(len(plan.fields)), key=plan.starts.__getitem__):
            field = plan.fields[index]
            codes.append(_HEAP_CELL if field.is_variable else _CODES[field.dtype])
            self.slots[index] = slot
            slot += 3 if field.is_variable else 1
        self._struct = struct.Struct("".join(codes) + f"{plan.bits_count}s")
        self.required = int.from_bytes(plan.required_bits.tobytes(), "little")

    def read(self, entity_id: str) -> OneRow | None:
        """The row, or None for a segment that moved on, an id that is not ASCII, or a contended row."""
        buffer: Any = np.empty(self._bytes, np.uint8)
        code = _read_one(self._words, entity_id, buffer)
        if code == FOUND:
            return OneRow(self, entity_id, buffer, self._struct.unpack(buffer))
        return OneRow(self, entity_id, None, ()) if code == MISSING else None


class OneRow:
    """The row of one entity: the event time, then values by ``layout.slots``, then null bits; nothing if not found."""

    __slots__ = ("_buffer", "_entity_id", "layout", "values")

    def __init__(self, layout: RowLayout, entity_id: str, buffer: Any, values: tuple[Any, ...]) -> None:
        self.layout = layout
        self.values = values
        self._entity_id = entity_id
        self._buffer = buffer

    @property
    def complete(self) -> bool:
        """Whether the entity has a row, and no field that was read is null."""
        required = self.layout.required
        return bool(self.values) and int.from_bytes(self.values[-1], "little") & required == required

    def is_valid(self, index: int) -> bool:
        """Whether a field has a value."""
        if not self.values:
            return False
        byte, mask = self.layout.plan.null_bits[index]
        return bool(self.values[-1][byte] & mask)

    def stored(self, index: int) -> Any:
        """The bytes in the heap of a variable-size field, a view of shared memory."""
        slot = self.layout.slots[index]
        offset, size = self.values[slot], self.values[slot + 1]
        return self.layout.heap[offset : offset + size]

    def columns(self) -> Columns:
        """The same as columns of one row."""
        columns = Columns(self.layout.plan, pa.array([self._entity_id], pa.string()), PLAIN_GATHER)
        columns.found[0] = bool(self.values)
        columns.buffer[:] = self._buffer if self.values else 0
        return columns


def _read_one(words: Any, entity_id: str, out: Any) -> int:
    """Stands in for the kernel until the first read has loaded it."""
    global _read_one
    from quorin.kernels import read_one as _read_one

    return _read_one(words, entity_id, out)
