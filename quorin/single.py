"""One row as plain Python values, for requests of one entity, where making arrays would cost more than the read."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from quorin.columnar import PLAIN_GATHER, Bytes, ColumnPlan, Columns
from quorin.schema import dtype

if TYPE_CHECKING:
    from quorin.view import SegmentView

_CODES = {dtype.float32: "f", dtype.float64: "d", dtype.int32: "i", dtype.int64: "q", dtype.uint8: "B", dtype.bool: "?"}
_HEAP_CELL, _HEAP_CELL_ITEMS = "QII", 3


class RowLayout:
    """How the columns of one row stand in a buffer, as ``struct`` unpacks them.

    ``slots`` says for each field where its values begin among those unpacked; the first is the event time, the last the
    validity bits.
    """

    __slots__ = ("heap", "plan", "required", "row_bytes", "slots", "unpack", "view", "words")

    def __init__(self, view: SegmentView, plan: ColumnPlan) -> None:
        self.view = view
        self.plan = plan
        self.words = plan.words(1)
        self.row_bytes = plan.row_bytes
        self.heap = view.mapping.memory[view.layout.heap_offset :]
        self.slots = [0] * len(plan.fields)
        codes, slot = ["<q"], 1
        for index in sorted(range(len(plan.fields)), key=plan.starts.__getitem__):
            field = plan.fields[index]
            codes.append(_HEAP_CELL if field.is_variable else f"{field.element_count}{_CODES[field.dtype]}")
            self.slots[index] = slot
            slot += _HEAP_CELL_ITEMS if field.is_variable else field.element_count
        self.unpack = struct.Struct("".join(codes) + f"{plan.bits_count}s").unpack
        self.required = int.from_bytes(plan.required_bits.tobytes(), "little")


class OneRow:
    """The row of one entity, one whole version of it; ``values`` are in the order of ``layout.slots``, empty if it has
    none.
    """

    __slots__ = ("_buffer", "_entity_id", "layout", "values")

    def __init__(self, layout: RowLayout, entity_id: str, buffer: Bytes | None, values: tuple[Any, ...]) -> None:
        self.layout = layout
        self.values = values
        self._entity_id = entity_id
        self._buffer = buffer

    @property
    def complete(self) -> bool:
        """Whether the entity has a row, and no field that was read is null."""
        if self.layout.plan.lacks_fields:
            return False
        required = self.layout.required
        return bool(self.values) and int.from_bytes(self.values[-1], "little") & required == required

    def is_valid(self, index: int) -> bool:
        """Whether a field has a value."""
        if not self.values:
            return False
        byte, mask = self.layout.plan.null_bits[index]
        return bool(self.values[-1][byte] & mask)

    def stored(self, index: int) -> Bytes:
        """What the heap holds of a variable-size field, a view of shared memory that never changes."""
        slot = self.layout.slots[index]
        offset, size = self.values[slot], self.values[slot + 1]
        return self.layout.heap[offset : offset + size]

    def columns(self) -> Columns:
        """The same as columns of one row."""
        layout = self.layout
        columns = Columns(layout.plan, layout.view, pa.array([self._entity_id], pa.string()), PLAIN_GATHER)
        columns.found[0] = bool(self.values)
        columns.buffer[:] = 0 if self._buffer is None else self._buffer
        return columns
