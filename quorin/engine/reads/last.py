"""The last values that rows keep of a field with a history: of one entity as arrays, of many as Arrow lists.

A read copies count, event times, values and validity as any read copies columns; only the plan is another.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import FOUND, MISSING_ZEROS, RAW_BYTES, ZEROS
from quorin.engine.memory.plans import read_plan
from quorin.engine.reads.many import read_many
from quorin.engine.reads.not_held import check_held, check_one_held, not_held_of
from quorin.engine.rows.batch import fields_by_name
from quorin.engine.rows.column import arrow_type_of
from quorin.engine.rows.compatibility import fits
from quorin.engine.rows.intake import id_array
from quorin.engine.rows.value import check_entity_id
from quorin.errors import EntityNotFoundError, InvalidRowError

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Bytes, Int64s, Mask
    from quorin.engine.memory.view import SegmentView
    from quorin.shm import Segment

_MAX_PLANS = 64
_UINT8, _INT64, _BOOL = np.dtype(np.uint8), np.dtype(np.int64), np.dtype(np.bool_)
_empty, _array = np.empty, np.ndarray


class LastValues(NamedTuple):
    """The last values of a field of one entity, newest first: ``values`` (of the field's dtype, 0 where null),
    ``valid`` (bool) and ``event_time_ns`` (int64), each of shape ``(count,)``.
    """

    values: AnyArray
    valid: Mask
    event_time_ns: Int64s


class LastPlan:
    """Where one read puts the last ``limit`` values of a field: a count, event times, values, validity."""

    __slots__ = ("dtype", "field", "limit", "row_bytes", "spans", "times", "validity", "values", "words")

    def __init__(self, view: SegmentView, name: str, n: int | None) -> None:
        self.field = field = _field(view, name)
        ring = next((ring for ring in fmt.body_layout(view.stored).rings if ring.cell.field.name == name), None)
        if ring is not None and fits(ring.cell.field, field):
            self.field = field = ring.cell.field
        else:
            ring = None
        self.dtype = field.dtype.numpy
        self.limit = 0 if ring is None else min(ring.capacity, ring.capacity if n is None else n)
        self.times = fmt.WORD_BYTES
        self.values = self.times + fmt.WORD_BYTES * self.limit
        self.validity = self.values + field.byte_count * self.limit
        self.row_bytes = fmt.align(self.validity + self.limit, fmt.WORD_BYTES)
        body, step = view.layout.body_offset, self.row_bytes
        if ring is None:
            self.spans = [[0, 0, step, fmt.WORD_BYTES, ZEROS]]
        else:
            self.spans = [
                [body + ring.count, 0, step, fmt.WORD_BYTES, RAW_BYTES],
                [body + ring.times, self.times, step, fmt.WORD_BYTES * self.limit, RAW_BYTES],
                [body + ring.values, self.values, step, field.byte_count * self.limit, RAW_BYTES],
                [body + ring.validity, self.validity, step, self.limit, RAW_BYTES],
            ]
        self.words = read_plan(view.descriptor, self.row_bytes, self.spans, [], MISSING_ZEROS)


def last_plan(view: SegmentView, name: str, n: int | None) -> LastPlan:
    """The plan for the last ``n`` values of a field (None: all that are kept); cached in the view.

    :raises InvalidRowError: for a field that the schema does not have, or that keeps no history.
    :raises ValueError: for an ``n`` that is no number of values.
    """
    plan: LastPlan | None = view.column_plans.get((name, n))
    if plan is None:
        if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
            raise ValueError(f"n: expected a whole number of values, 1 or more, or None, got {n!r}")
        if len(view.column_plans) >= _MAX_PLANS:
            view.column_plans.clear()
        plan = view.column_plans[name, n] = LastPlan(view, name, None if n is None else int(n))
    return plan


def read_last(segment: Segment, entity_id: str, field: str, n: int | None = None) -> LastValues:
    """The last ``n`` values that an entity's row keeps of a field with a history, all if None, newest first: one whole
    version, as every read.

    A field whose history was removed in a newer version of the schema has none.

    :raises EntityNotFoundError: if the entity has no row. :raises NotHeldError: if its partition is not held.
    :raises EntityIdError: for an id that is empty or no text.
    :raises InvalidRowError: for a field that is unknown or keeps no history. :raises ValueError: for a bad ``n``.
    """
    view = segment.current_view()
    plan = last_plan(view, field, n)
    out: Bytes = _empty(plan.row_bytes, _UINT8)
    if type(entity_id) is not str or _read_one(plan.words, entity_id, out) != FOUND:
        key = check_entity_id(entity_id)
        ids, found = pa.array([key], pa.binary()), _empty(1, _BOOL)
        while not read_many(view, plan.words, ids, out, found, math.nan):
            view = segment.current_view()
            plan = last_plan(view, field, n)
            out = _empty(plan.row_bytes, _UINT8)
        if not found[0]:
            check_one_held(segment, view, key)
            raise EntityNotFoundError(entity_id, view.name)
    return last_values_of(plan, out)


def read_last_batch(segment: Segment, entity_ids: Any, field: str, n: int | None = None) -> pa.RecordBatch:
    """The same of many entities: the columns ``entity_id`` (as passed), ``found``, and the lists ``values`` and
    ``event_time_ns``, which are null where an entity is not found. Releases the GIL.

    :raises EntityIdError: naming the first id that is empty, null or no text. :raises NotHeldError, InvalidRowError,
        ValueError: as :func:`read_last`.
    """
    ids = id_array(entity_ids)
    while True:
        view = segment.current_view()
        plan = last_plan(view, field, n)
        out, found = np.empty(len(ids) * plan.row_bytes, np.uint8), np.empty(len(ids), np.bool_)
        if read_many(view, plan.words, ids, out, found, math.nan):
            check_held(segment, view, ids, not_held_of(view, ids, found))
            return last_batch_of(plan, ids, found, out)


def last_values_of(plan: LastPlan, out: Bytes) -> LastValues:
    """What a read of one row put into ``out``."""
    shape = (min(_array((), _INT64, out).item(), plan.limit),)
    return LastValues(
        _array(shape, plan.dtype, out, plan.values),
        _array(shape, _BOOL, out, plan.validity),
        _array(shape, _INT64, out, plan.times),
    )


def last_batch_of(plan: LastPlan, ids: pa.Array, found: Mask, out: Bytes) -> pa.RecordBatch:
    """What a read of many rows put into ``out``."""
    rows = out.reshape(len(ids), plan.row_bytes)
    counts = np.minimum(rows[:, : fmt.WORD_BYTES].copy().view(np.int64)[:, 0], plan.limit)
    kept = np.arange(plan.limit) < counts[:, None]

    def part(start: int, dtype: np.dtype[Any]) -> AnyArray:
        column = np.ascontiguousarray(rows[:, start : start + dtype.itemsize * plan.limit])
        items: AnyArray = column.view(dtype).reshape(len(ids), plan.limit)[kept]
        return items

    ends = pa.array(np.cumsum([0, *counts], dtype=np.int64).astype(np.int32))
    missing = None if found.all() else pa.array(~found)
    items = pa.array(part(plan.values, plan.dtype), arrow_type_of(plan.field), mask=~part(plan.validity, _BOOL))
    values = pa.ListArray.from_arrays(ends, items, mask=missing)
    times = pa.ListArray.from_arrays(ends, pa.array(part(plan.times, _INT64)), mask=missing)
    arrays = [ids, pa.array(found), values, times]
    return pa.RecordBatch.from_arrays(arrays, names=["entity_id", "found", "values", "event_time_ns"])


def _field(view: SegmentView, name: str) -> Any:
    fields = fields_by_name(view.schema)
    field = fields.get(name)
    if field is None or field.history is None:
        keeping = [one.name for one in fields.values() if one.history]
        raise InvalidRowError(f"{view.schema.__name__}: {name!r} is no field with a history; those that are: {keeping}")
    return field


def _read_one(words: Int64s, entity_id: str, out: Bytes) -> int:
    """Stands in for the kernel until the first read has loaded it."""
    global _read_one
    from quorin.engine.kernels import read_one as _read_one

    return _read_one(words, entity_id, out)
