"""Typed columns of many rows, filled by a read, and how they become NumPy and Arrow arrays without copying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from quorin.engine.format import segment as fmt
from quorin.engine.reads.column_plan import EVENT_TIME_BYTES, POSITION_BYTES
from quorin.engine.rows.column import arrow_type_of
from quorin.engine.rows.intake import id_array
from quorin.errors import InvalidRowError
from quorin.schema import FeatureField, dtype

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Bytes, Int64s, Mask
    from quorin.engine.memory.view import SegmentView
    from quorin.engine.reads.column_plan import ColumnPlan


_MAX_BYTES = 2**31 - 1


class Gather(NamedTuple):
    """How values are collected from the heap: in NumPy, or compiled; both collect the same.

    ``values(view, cells, ends, data)`` copies the bytes of cell ``i`` to ``data[ends[i] : ends[i + 1]]``.
    ``texts(view, cells, ends, item_ends, data)`` does that for lists of strings, without their end offsets, and
    fills in where each item ends in ``data``.
    """

    values: Callable[[SegmentView, AnyArray, Int64s, Bytes], None]
    texts: Callable[[SegmentView, AnyArray, Int64s, Int64s, Bytes], None]


class Columns:
    """The rows of a batch of ids, as columns: each row one whole version, in the order of the ids.

    ``found`` (bool, shape ``(N,)``) says which entities have a row. Fields are named by their index in the choice of
    fields. ``ages`` are their age limits in ns, counted from ``now_ns``, where any were asked for. ``not_held``, of the
    shape of ``found``, says which entities' partitions are not held, where that was asked for.
    """

    __slots__ = (
        "_complete", "_gather", "_ids", "_plan", "_run_arrays", "_view", "ages", "buffer", "found", "not_held",
        "now_ns",
    )  # fmt: skip

    def __init__(
        self,
        plan: ColumnPlan,
        view: SegmentView,
        ids: Any,
        gather: Gather,
        ages: tuple[int, ...] | None = None,
        now_ns: int = 0,
    ) -> None:
        self._plan = plan
        self._view = view
        self._gather = gather
        self._complete: bool | None = None
        self._ids = ids
        self._run_arrays: dict[int, pa.Array] = {}
        self.buffer: Bytes = np.empty(plan.row_bytes * len(ids), np.uint8)
        self.found: Mask = np.empty(len(ids), np.bool_)
        self.not_held: Mask | None = None
        self.ages = ages
        self.now_ns = now_ns

    @property
    def fields(self) -> tuple[FeatureField, ...]:
        """The fields that were read, in the order of the request."""
        return self._plan.fields

    @property
    def plan(self) -> ColumnPlan:
        """Where in :attr:`buffer` the fields are."""
        return self._plan

    @property
    def view(self) -> SegmentView:
        """The attached file that was read; it has the heap that cells point to."""
        return self._view

    @property
    def all_found(self) -> bool:
        """Whether every entity has a row."""
        return b"\0" not in self.found.tobytes()  # quicker than `all` on the few rows of a request

    @property
    def complete(self) -> bool:
        """Whether every entity has a row and no field that was read is null in any of them."""
        if self._complete is None:
            required, bits = self._plan.required_bits, self.buffer[self._plan.bits_start * len(self.found) :]
            self._complete = (
                self.all_found
                and not self._plan.lacks_fields
                and (
                    bits.tobytes() == self._plan.all_bits * len(self.found)
                    or bool((self._bits() & required == required).all())
                )
            )
        return self._complete

    @property
    def event_time_ns(self) -> Int64s:
        """Event times in nanoseconds since the epoch, int64 of shape ``(N,)``; 0 where not found."""
        return self.buffer[: EVENT_TIME_BYTES * len(self.found)].view(np.int64)

    @property
    def positions(self) -> Int64s:
        """The log positions of the writes that made the rows, int64 of shape ``(N,)``; 0 where not found.

        :raises InvalidRowError: if the reader was not made with ``positions=True``.
        """
        if not self._plan.has_positions:
            raise InvalidRowError("log positions were not read: make the reader with positions=True")
        count = len(self.found)
        return self.buffer[EVENT_TIME_BYTES * count : (EVENT_TIME_BYTES + POSITION_BYTES) * count].view(np.int64)

    def values(self, index: int) -> AnyArray:
        """A fixed-size field's values, shape ``(N, *field.shape)``, without copying; zeros where null or not found."""
        field = self._plan.fields[index]
        column = self._column(index).view(field.dtype.numpy)
        return column.reshape(len(self.found), *field.shape) if field.shape else column

    def runs(self) -> Iterator[tuple[list[int], AnyArray]]:
        """Single numbers of the same dtype together, without copying: the fields by their index, and their values,
        shape ``(fields, N)``.
        """
        count = len(self.found)
        for run in self._plan.runs:
            kind = self._plan.fields[run.fields[0]].dtype
            size = kind.item_size * len(run.fields) * count
            values = self.buffer[run.start * count : run.start * count + size].view(kind.numpy)
            yield run.fields, values.reshape(len(run.fields), count)

    def valid(self, index: int) -> Mask:
        """Where a field has a value: found, and not null."""
        byte, mask = self._plan.null_bits[index]
        valid: Mask = self._bits()[:, byte] & mask != 0
        return valid

    def age_limit(self, index: int) -> int:
        """The age limit of a field in ns, 0 for none."""
        return 0 if self.ages is None else self.ages[index]

    def outdated(self, index: int) -> Mask | None:
        """Where a row is over the age limit of a field, which reads as null there; None if it is so nowhere."""
        limit = self.age_limit(index)
        if not limit:
            return None
        outdated: Mask = self.found & (self.event_time_ns < self.now_ns - limit)
        return outdated if outdated.any() else None

    @property
    def fresh(self) -> Mask:
        """Which entities have a row that is over the age limit of no field, bool of shape ``(N,)``."""
        limit = min((age for age in self.ages or () if age), default=0)
        return self.found & (self.event_time_ns >= self.now_ns - limit) if limit else self.found.copy()

    def arrow(self, index: int) -> pa.Array:
        """A field's values in its exact Arrow type, null where null or not found."""
        if self.complete and index in self._plan.run_of:
            return self._slice_of_run(index)
        field = self._plan.fields[index]
        valid = None if self.complete else self.valid(index)
        validity = None if valid is None or valid.all() else _packed(valid)
        if field.is_variable:
            return self._variable(field, self._column(index).view(fmt.VAR_CELL), validity)
        return self._fixed(field, index, validity)

    def lists(self, index: int) -> list[list[Any]]:
        """A variable-length field of numbers as Python lists. Those of rows where it is not valid mean nothing."""
        field, count = self._plan.fields[index], len(self.found)
        cells = self._column(index).view(fmt.VAR_CELL)
        sizes = cells["bytes"].tolist()
        is_even = count > 0 and sizes[0] > 0 and sizes.count(sizes[0]) == count
        ends = np.arange(0, sizes[0] * count + 1, sizes[0]) if is_even else _ends(cells["bytes"])
        elements = self._gathered(cells, ends).view(field.dtype.numpy)
        if is_even:
            rows: list[list[Any]] = elements.reshape(count, -1).tolist()
            return rows
        flat, ends = elements.tolist(), ends // field.dtype.item_size
        return [flat[start:stop] for start, stop in pairwise(ends.tolist())]

    def drop(self, rows: Mask) -> None:
        """Take some rows for not found."""
        if rows.any():
            columns = self.buffer[: self._plan.bits_start * len(self.found)]
            start = 0
            for size in self._plan.column_bytes:
                columns[start : start + size * len(self.found)].reshape(len(self.found), size)[rows] = 0
                start += size * len(self.found)
            self.found[rows] = False
            self._bits()[rows] = 0
            self._complete = None

    def to_batch(self) -> pa.RecordBatch:
        """The columns ``entity_id`` (as passed), ``found``, ``event_time_ns`` (null if not found), if positions were
        read ``log_position`` (null likewise), ``fresh`` if there are age limits, ``not_held`` if asked for, and the
        fields.
        """
        count, bits = len(self.found), _packed(self.found)
        found = pa.Array.from_buffers(pa.bool_(), count, [None, bits])
        validity = None if self.all_found else bits
        times = pa.Array.from_buffers(pa.int64(), count, [validity, pa.py_buffer(self.event_time_ns)])
        arrays, names = [id_array(self._ids), found, times], ["entity_id", "found", "event_time_ns"]
        if self._plan.has_positions:
            arrays.append(pa.Array.from_buffers(pa.int64(), count, [validity, pa.py_buffer(self.positions)]))
            names.append("log_position")
        if self.ages is not None:
            arrays.append(pa.array(self.fresh))
            names.append("fresh")
        if self.not_held is not None:
            arrays.append(pa.array(self.not_held))
            names.append("not_held")
        arrays += [self.arrow(i) for i in range(len(self.fields))]
        names += [field.name for field in self.fields]
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def _column(self, index: int) -> Bytes:
        count = len(self.found)
        start = self._plan.starts[index] * count
        return self.buffer[start : start + self._plan.cells[index].byte_count * count]

    def _bits(self) -> Bytes:
        return self.buffer[self._plan.bits_start * len(self.found) :].reshape(len(self.found), self._plan.bits_count)

    def _slice_of_run(self, index: int) -> pa.Array:
        """A column of numbers without nulls: a slice costs a tenth of an array of its own."""
        run, number = self._plan.run_of[index]
        count = len(self.found)
        values = self._run_arrays.get(run.start)
        if values is None:
            buffers = [None, pa.py_buffer(self.buffer[run.start * count :])]
            kind = arrow_type_of(self._plan.fields[index])
            values = self._run_arrays[run.start] = pa.Array.from_buffers(kind, len(run.fields) * count, buffers)
        return values.slice(number * count, count)

    def _fixed(self, field: FeatureField, index: int, validity: pa.Buffer | None) -> pa.Array:
        count = len(self.found)
        kind = arrow_type_of(field)
        column = self._column(index)
        if field.dtype is dtype.bool:
            # Arrow keeps booleans as bits.
            column = np.packbits(column, bitorder="little")
        if not field.shape:
            return pa.Array.from_buffers(kind, count, [validity, pa.py_buffer(column)])
        return _nested(kind, pa.py_buffer(column), count, validity)

    def _variable(self, field: FeatureField, cells: AnyArray, validity: pa.Buffer | None) -> pa.Array:
        count = len(cells)
        kind = arrow_type_of(field)
        if field.is_list and not field.dtype.is_numeric:
            return self._texts(kind, cells, validity)
        ends = _ends(cells["bytes"])
        data = self._gathered(cells, ends)
        if not field.is_list:
            buffers = [validity, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)]
            return pa.Array.from_buffers(kind, count, buffers)
        child = pa.array(data.view(field.dtype.numpy), kind.value_type)
        return _list_array(kind, _ends(cells["count"]), child, validity)

    def _gathered(self, cells: AnyArray, ends: Int64s) -> Bytes:
        """What cells point to, one after the other; ``ends`` says where each begins and ends."""
        data = np.empty(int(ends[-1]), np.uint8)
        self._gather.values(self._view, cells, ends, data)
        return data

    def _texts(self, kind: pa.DataType, cells: AnyArray, validity: pa.Buffer | None) -> pa.Array:
        item_starts = _ends(cells["count"])
        ends = _ends(cells["bytes"] - 4 * cells["count"])
        item_ends = np.zeros(int(item_starts[-1]) + 1, np.int64)
        data = np.empty(int(ends[-1]), np.uint8)
        self._gather.texts(self._view, cells, ends, item_ends[1:], data)
        buffers = [None, pa.py_buffer(item_ends.astype(np.int32)), pa.py_buffer(data)]
        child = pa.Array.from_buffers(kind.value_type, len(item_ends) - 1, buffers)
        return _list_array(kind, item_starts, child, validity)


def _gather_values(view: SegmentView, cells: AnyArray, ends: Int64s, data: Bytes) -> None:
    heap = view.mapping.memory[view.layout.heap_offset :]
    for start, stop, offset in zip(ends[:-1].tolist(), ends[1:].tolist(), cells["offset"].tolist(), strict=True):
        data[start:stop] = heap[offset : offset + stop - start]


def _gather_texts(view: SegmentView, cells: AnyArray, ends: Int64s, item_ends: Int64s, data: Bytes) -> None:
    heap = view.mapping.memory[view.layout.heap_offset :]
    item = 0
    for start, stop, cell in zip(ends[:-1].tolist(), ends[1:].tolist(), cells, strict=True):
        offset, count = int(cell["offset"]), int(cell["count"])
        item_ends[item : item + count] = start + heap[offset : offset + 4 * count].view("<u4").astype(np.int64)
        data[start:stop] = heap[offset + 4 * count : offset + 4 * count + stop - start]
        item += count


NUMPY_GATHER = Gather(_gather_values, _gather_texts)
"""In NumPy, a row at a time."""


def _ends(sizes: AnyArray) -> Int64s:
    """Offsets of pieces put one after the other: one more than there are pieces.

    :raises InvalidRowError: if they are more than one Arrow array can hold.
    """
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    if ends[-1] > _MAX_BYTES:
        raise InvalidRowError(f"{int(ends[-1]):,} bytes of one field in one read, an Arrow array holds 2**31-1")
    return ends


def _packed(mask: Mask) -> pa.Buffer:
    """A mask as Arrow keeps it, in bits."""
    return pa.py_buffer(np.packbits(mask, bitorder="little"))


def _nested(kind: pa.DataType, data: pa.Buffer, count: int, validity: pa.Buffer | None) -> pa.Array:
    """Numbers as (nested) fixed-size lists; the validity is the outermost's."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, count, [None, data])
    child = _nested(kind.value_type, data, count * kind.list_size, None)
    return pa.Array.from_buffers(kind, count, [validity], children=[child])


def _list_array(kind: pa.DataType, ends: Int64s, child: pa.Array, validity: pa.Buffer | None) -> pa.Array:
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(kind, len(ends) - 1, [validity, offsets], children=[child])
