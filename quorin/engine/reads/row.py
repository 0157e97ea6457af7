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
    """How the columns of one row lie in a buffer, as ``struct`` unpacks them. ``ages`` are age limits in ns, by field.

    ``slots`` says for each field where its values begin among those unpacked; the first is the event time, the next the
    log position if the plan has positions, the last the validity bits.
    """

    __slots__ = ("ages", "code", "heap", "plan", "required", "slot_count", "slots", "view")

    def __init__(self, view: SegmentView, plan: ColumnPlan, ages: tuple[int, ...] | None = None) -> None:
        self.view = view
        self.plan = plan
        self.ages = ages
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
    """How the rows of one entity in several views lie in a buffer: one :class:`RowLayout` after the other, then a byte
    for each view: whether the row was found.

    ``firsts`` says for each view where its slots begin among the values unpacked; the bytes are the last of these.
    ``ends`` says where each view's row begins in the buffer, and where the last one ends. ``is_partial`` says whether
    some view does not hold all partitions, ``partition_count`` how many there are; 0 if the views differ in that.
    """

    __slots__ = (
        "_ends",
        "all_found",
        "bits",
        "byte_count",
        "ends",
        "firsts",
        "is_partial",
        "lacks_fields",
        "partition_count",
        "parts",
        "unpack",
        "words",
    )

    def __init__(self, parts: Sequence[RowLayout]) -> None:
        self.parts = tuple(parts)
        plans = [part.plan.words(1, part.ages) for part in parts]
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
        self.is_partial = any(part.view.is_partial for part in parts)
        counts = {part.view.layout.partition_count for part in parts}
        self.partition_count = counts.pop() if len(counts) == 1 else 0
        self.lacks_fields = any(part.plan.lacks_fields for part in parts)

    def slot(self, number: int, index: int) -> int:
        """Where the values of a field of a view begin among those unpacked."""
        return self.firsts[number] + self.parts[number].slots[index]

    def span(self, number: int) -> tuple[int, int]:
        """Where the row of a view begins in the buffer, and where it ends."""
        return self._ends[number], self._ends[number + 1]


class Rows:
    """A row of one entity from each of several views; ``rows[number]`` is one of them.

    ``values`` are what ``layout`` unpacks from ``buffer``: zeros where there is no row. Age limits were counted from
    ``now_ns``.
    """

    __slots__ = ("buffer", "entity_id", "layout", "now_ns", "values")

    def __init__(
        self, layout: RowsLayout, entity_id: str, buffer: Bytes, values: tuple[Any, ...], now_ns: int = 0
    ) -> None:
        self.layout = layout
        self.values = values
        self.now_ns = now_ns
        self.entity_id = entity_id
        self.buffer = buffer

    def __getitem__(self, number: int) -> OneRow:
        layout = self.layout
        part, first = layout.parts[number], layout.firsts[number]
        if not self.values[-1][number]:
            return OneRow(part, self.entity_id, None, (), self.now_ns)
        start, stop = layout.span(number)
        values = self.values[first : first + part.slot_count]
        return OneRow(part, self.entity_id, self.buffer[start:stop], values, self.now_ns)

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

    __slots__ = ("_buffer", "_entity_id", "layout", "now_ns", "values")

    def __init__(
        self, layout: RowLayout, entity_id: str, buffer: Bytes | None, values: tuple[Any, ...], now_ns: int = 0
    ) -> None:
        self.layout = layout
        self.values = values
        self.now_ns = now_ns
        self._entity_id = entity_id
        self._buffer = buffer

    @property
    def complete(self) -> bool:
        """Whether the entity has a row, and no field that was read is null."""
        if self.layout.plan.lacks_fields:
            return False
        required = self.layout.required
        return bool(self.values) and int.from_bytes(self.values[-1], "little") & required == required

    @property
    def position(self) -> int | None:
        """The log position of the write that made the row; None if the entity has none. The reader was made with
        ``positions=True``.
        """
        return self.values[1] if self.values else None

    def is_valid(self, index: int) -> bool:
        """Whether a field has a value."""
        if not self.values:
            return False
        byte, mask = self.layout.plan.null_bits[index]
        return bool(self.values[-1][byte] & mask)

    def age_limit(self, index: int) -> int:
        """The age limit of a field in ns, 0 for none."""
        ages = self.layout.ages
        return 0 if ages is None else ages[index]

    def is_outdated(self, index: int) -> bool:
        """Whether the row is over the age limit of a field, which reads as null."""
        limit = self.age_limit(index)
        return limit > 0 and bool(self.values) and self.values[0] < self.now_ns - limit

    def stored(self, index: int) -> Bytes:
        """What the heap holds of a variable-size field, a view of shared memory that never changes."""
        slot = self.layout.slots[index]
        offset, size = self.values[slot], self.values[slot + 1]
        return self.layout.heap[offset : offset + size]

    def columns(self) -> Columns:
        """The row as columns of length 1."""
        layout = self.layout
        ids = pa.array([self._entity_id], pa.string())
        columns = Columns(layout.plan, layout.view, ids, NUMPY_GATHER, layout.ages, self.now_ns)
        columns.found[0] = bool(self.values)
        columns.buffer[:] = 0 if self._buffer is None else self._buffer
        return columns
