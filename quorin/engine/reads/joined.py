"""Columns of which some rows were read on other nodes: one answer, equal to that of a node that has all rows."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.engine.reads.columns import Columns
from quorin.engine.reads.gather import COMPILED_GATHER
from quorin.engine.rows.column import arrow_type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quorin.engine.arrays import AnyArray, Int64s, Mask
    from quorin.schema import FeatureField

LEADING = ["entity_id", "found", "event_time_ns", "log_position"]


class JoinedColumns(Columns):
    """What was read here of a batch of ids, completed by what other nodes read of those that are not held here.

    ``parts`` are pairs of indexes of ids, and what :func:`quorin.assembly.read` returned for these ids there, with
    positions, for the same fields and without age limits: those of ``own`` are applied to all rows at the same time.

    """

    __slots__ = ("_arrays",)

    def __init__(self, own: Columns, ids: Any, parts: Sequence[tuple[Int64s, pa.RecordBatch]]) -> None:
        super().__init__(own.plan, own.view, ids, COMPILED_GATHER, own.ages, own.now_ns)
        variable = {index: own.arrow(index) for index, field in enumerate(self.fields) if field.is_variable}
        self.buffer, self.found = own.buffer, own.found
        for rows, batch in parts:
            self._fill(rows, batch)
        self._arrays = {index: self._joined(index, column, parts) for index, column in variable.items()}

    def arrow(self, index: int) -> pa.Array:
        """A field's values in its exact Arrow type, null where null or not found."""
        if index not in self._arrays:
            return super().arrow(index)
        column, valid = self._arrays[index], self.valid(index)
        # Rows may have been taken for not found since, or be over their age limit.
        return column if column.null_count == len(valid) - int(valid.sum()) else _nulled(column, valid)

    def lists(self, index: int) -> list[list[Any]]:
        """A variable-length field of numbers as Python lists. Those of rows where it is not valid mean nothing."""
        column = self._arrays[index]
        flat = column.values.to_pylist()
        return [flat[start:stop] for start, stop in pairwise(column.offsets.to_pylist())]

    def _fill(self, rows: Int64s, batch: pa.RecordBatch) -> None:
        """Put what is of a fixed size where a read would have put it."""
        found = _numbers(batch.column(1))
        self.found[rows] = found
        self.event_time_ns[rows] = _numbers(batch.column(2))
        if self.plan.has_positions:
            self.positions[rows] = _numbers(batch.column(3))
        bits = self._bits()
        for index, (field, column) in enumerate(zip(self.fields, batch.columns[len(LEADING) :], strict=True)):
            byte, mask = self.plan.null_bits[index]
            valid = column.is_valid().to_numpy(zero_copy_only=False) & self._within(index, rows)
            bits[rows, byte] = np.where(valid, bits[rows, byte] | mask, bits[rows, byte] & ~np.uint8(mask))
            if not field.is_variable:
                values = _fixed(field, column)
                values[~valid] = 0
                self.values(index)[rows] = values

    def _within(self, index: int, rows: Int64s) -> Mask:
        """Which rows are within the age limit of a field."""
        limit = self.age_limit(index)
        within: Mask = self.event_time_ns[rows] >= self.now_ns - limit if limit else np.ones(len(rows), np.bool_)
        return within

    def _joined(self, index: int, own: pa.Array, parts: Sequence[tuple[Int64s, pa.RecordBatch]]) -> pa.Array:
        """A field of variable size: what was read here, with the values of the parts in their places."""
        columns, places, count = [own], np.arange(len(own)), len(own)
        for rows, batch in parts:
            columns.append(batch.column(len(LEADING) + index).cast(own.type))
            places[rows] = np.arange(count, count + len(rows))
            count += len(rows)
        return pa.concat_arrays(columns).take(pa.array(places))


def _fixed(field: FeatureField, column: pa.Array) -> AnyArray:
    """The values of a fixed size, shape ``(N, *field.shape)``; 0 for nulls."""
    count, column = len(column), column.cast(arrow_type_of(field))
    while pa.types.is_fixed_size_list(column.type):
        column = column.values
    return _numbers(column).reshape(count, *field.shape).copy()


def _numbers(column: pa.Array) -> AnyArray:
    """Numbers or booleans as an array, 0 for nulls."""
    if column.null_count:
        column = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
    values: AnyArray = column.to_numpy(zero_copy_only=False)
    return values


def _nulled(column: pa.Array, valid: Mask) -> pa.Array:
    """A column with nulls where it is not valid."""
    return column.take(pa.array(np.arange(len(valid)), mask=~valid))
