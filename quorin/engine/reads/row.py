"""One row as Python values, for requests of one entity, where making arrays would cost more than the read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.engine.reads.columns import NUMPY_GATHER, Columns
from quorin.schema import dtype

if TYPE_CHECKING:
    from quorin.engine.arrays import Bytes
    from quorin.engine.memory.view import SegmentView
    from quorin.engine.reads.column_plan import ColumnPlan

_CODES = {dtype.float32: "f", dtype.float64: "d", dtype.int32: "i", dtype.int64: "q", dtype.uint8: "B", dtype.bool: "?"}
_HEAP_CELL, _HEAP_CELL_ITEMS = "QII", 3


class RowLayout:
    """How the columns of one row lie in a buffer, as ``struct`` unpacks them.

    ``slots`` says for each field where its values begin among those unpacked; the first is the event time, the next the
    log position if the plan has positions, the last the validity bits.
    """

    __slots__ = ("code", "heap", "plan", "required", "slot_count", "slots", "view")

    def __init__(self, view: SegmentView, plan: ColumnPlan) -> None:
        self.view = view
        self.plan = plan
        self.heap = view.mapping.memory[view.layout.heap_offset :]
        self.slots = [0] * len(plan.fields)
        codes = ["q"] * (2 if plan.has_positions else 1)
        slot = len(codes)
        for index in sorted(range(len(plan.fields)), key=plan.starts.__getitem__):
            field = plan.fields[index]
            codes.append(_HEAP_CELL if field.is_variable else f"{field.element_count}{_CODES[field.dtype]}")
            self.slots[index] = slot
            slot += _HEAP_CELL_ITEMS if field.is_variable else field.element_count
        self.code = "".join(codes) + f"{plan.bits_count}s"
        self.slot_count = slot + 1
        self.required = int.from_bytes(plan.required_bits.tobytes(), "little")


class RowsLayout:
    """The same for a row of each of several views, one after the other, and then a byte for each: whether it was found.

    ``firsts`` says for each view where its slots begin among the values unpacked; the bytes are the last of these.
    ``ends`` says where each view's row begins in the buffer, and where the last one ends.
    """

    __slots__ = (
        "_ends",
        "all_found",
        "bits",
        "byte_count",
        "ends",
        "firsts",
        "lacks_fields",
        "parts",
        "unpack",
        "words",
    )

    def __init__(self, parts: Sequence[RowLayout]) -> None:
        self.parts = tuple(parts)
        plans = [part.plan.words(1) for part in parts]
        self._ends = [0, *accumulate(part.plan.row_bytes for part in parts)]
        self.ends = np.array(self._ends, np.int64)
        self.byte_count = self._ends[-1] + len(parts)
        head = np.array([len(parts), self._ends[-1]], np.int64)
        self.words = np.concatenate([head, *(word for plan in plans for word in ([len(plan)], plan))])
        self.unpack = struct.Struct("<" + "".join(part.code for part in parts) + f"{len(parts)}s").unpack
        *self.firsts, last = accumulate((part.slot_count for part in parts), initial=0)
        stops = [*self.firsts[1:], last]
        self.bits = tuple(
            (stop - 1, part.plan.all_bits, part.required) for stop, part in zip(stops, self.parts, strict=True)
        )
        self.all_found = b"\1" * len(parts)
        self.lacks_fields = any(part.plan.lacks_fields for part in parts)

    def slot(self, number: int, index: int) -> int:
        """Where the values of a field of a view begin among those unpacked."""
        return self.firsts[number] + self.parts[number].slots[index]

    def span(self, number: int) -> tuple[int, int]:
        """Where the row of a view begins in the buffer, and where it ends."""
        return self._ends[number], self._ends[number + 1]


class Rows:
    """A row of one entity from each of several views; ``rows[number]`` is one of them.

    ``values`` are what ``layout`` unpacks from ``buffer``: zeros where there is no row.
    """

    __slots__ = ("buffer", "entity_id", "layout", "values")

    def __init__(self, layout: RowsLayout, entity_id: str, buffer: Bytes, values: tuple[Any, ...]) -> None:
        self.layout = layout
        self.values = values
        self.entity_id = entity_id
        self.buffer = buffer

    def __getitem__(self, number: int) -> OneRow:
        layout = self.layout
        part, first = layout.parts[number], layout.firsts[number]
        if not self.values[-1][number]:
            return OneRow(part, self.entity_id, None, ())
        start, stop = layout.span(number)
        return OneRow(part, self.entity_id, self.buffer[start:stop], self.values[first : first + part.slot_count])

    @property
    def complete(self) -> bool:
        """Whether the entity has a row in every view, and no field that was read is null."""
        values, layout = self.values, self.layout
        if layout.lacks_fields or values[-1] != layout.all_found:
            return False
        for slot, every, required in layout.bits:
            bits = values[slot]
            if bits != every and int.from_bytes(bits, "little") & required != required:
                return False
        return True


class OneRow:
    """The row of one entity in a view, one whole version of it; ``values`` are in the order of ``layout.slots``, empty
    if it has none.
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
        columns = Columns(layout.plan, layout.view, pa.array([self._entity_id], pa.string()), NUMPY_GATHER)
        columns.found[0] = bool(self.values)
        columns.buffer[:] = 0 if self._buffer is None else self._buffer
        return columns
