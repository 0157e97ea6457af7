"""Reads of one view for one choice of features: bound to its segment once, followed as it is replaced.

What is read are typed columns (:class:`quorin.columnar.Columns`), copies of whole rows: what is decoded later is what
was read. Of a single row the numbers are had all at once (:class:`OneRow`), because a NumPy call a value would cost
more than the read.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quorin.assembly import ColumnReader, column_reader
from quorin.errors import SchemaMismatchError, SegmentClosedError, SegmentNotFoundError
from quorin.schema import dtype

if TYPE_CHECKING:
    from feast_quorin.engine import Engine
    from feast_quorin.views import StoredView
    from quorin.columnar import Columns
    from quorin.shm import Segment

LOOK_SECONDS = 0.005
"""How often a busy reader looks whether another process has removed its segment, which no reader is told."""

_ATTEMPTS = 6
_CODES = {dtype.float32: "f", dtype.float64: "d", dtype.int32: "i", dtype.int64: "q", dtype.bool: "?"}


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
        """One entity; None if the segment does not have all the fields.

        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """
        columns = self.many([entity_id])
        bound = self._bound
        if bound is None or len(bound.fields) < len(self._fields):
            return None
        if bound.numbers is None:
            bound.numbers = Numbers(columns)
        return OneRow(columns, bound.numbers)

    def many(self, entity_ids: list[str]) -> Columns:
        """Many entities. The columns are those of the wanted fields that the segment has: all of them, unless the view
        changed and this process has not heard of it yet.

        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._bind().read(entity_ids)
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

    __slots__ = ("fields", "numbers", "read", "segment")

    def __init__(self, segment: Segment, fields: list[str]) -> None:
        self.segment = segment
        self.fields = fields
        self.read: ColumnReader = column_reader(segment, fields)
        self.numbers: Numbers | None = None


class Numbers:
    """Where the numbers of one row stand in its columns' buffer: field ``i`` is value ``slots[i]`` of ``unpack``."""

    __slots__ = ("slots", "unpack")

    def __init__(self, columns: Columns) -> None:
        buffer_address = columns.buffer.ctypes.data
        places = [
            (columns.values(index).ctypes.data - buffer_address, index)
            for index, field in enumerate(columns.fields)
            if not field.is_variable
        ]
        self.slots = [0] * len(columns.fields)
        form, end = "<", 0
        for slot, (place, index) in enumerate(sorted(places)):
            code = columns.fields[index].dtype
            form += f"{place - end}x{_CODES[code]}"
            end = place + code.item_size
            self.slots[index] = slot
        self.unpack = struct.Struct(form + f"{len(columns.buffer) - end}x").unpack


class OneRow:
    """The columns of one row, its numbers by ``slots``, and whether it was found without a null."""

    __slots__ = ("columns", "complete", "numbers", "slots")

    def __init__(self, columns: Columns, layout: Numbers) -> None:
        self.columns = columns
        self.complete = columns.complete
        buffer: Any = columns.buffer
        self.numbers = layout.unpack(buffer)
        self.slots = layout.slots
