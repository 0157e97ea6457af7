"""Compiled reads: feature vectors and typed columns straight from shared memory.

The same functions and results as :mod:`quorin.serving`, bit for bit, and fast. A read finds the row, copies it and
checks that no writer touched it meanwhile; it takes no lock, and waits for nobody. When a segment has grown or was
replaced, the read that notices attaches the successor and goes on there.
"""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.engine.arrays import Float32s, Int64s, Mask
from quorin.engine.format.abi import FOUND, P_OUT_BYTES
from quorin.engine.memory.plans import vector_plan
from quorin.engine.reads import arguments as buffers
from quorin.engine.reads.columns import Columns
from quorin.engine.reads.many import read_many
from quorin.engine.reads.readers import ColumnReader, RowReader
from quorin.engine.reads.row import OneRow, Rows, RowsLayout
from quorin.engine.reads.scan import scan_view
from quorin.engine.rows.intake import id_array, number_ids
from quorin.engine.rows.value import check_entity_id
from quorin.errors import EntityNotFoundError, InvalidRowError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quorin.engine.memory.view import SegmentView
    from quorin.shm import Segment

__all__ = [
    "ColumnReader",
    "Columns",
    "EntityNotFoundError",
    "OneRow",
    "Reader",
    "RowReader",
    "Rows",
    "RowsLayout",
    "assemble",
    "assemble_batch",
    "column_reader",
    "number_ids",
    "prewarm",
    "read",
    "reader",
    "row_reader",
    "scan",
]

_Plan = Int64s
_FLOAT32, _UINT8 = np.dtype(np.float32), np.dtype(np.uint8)
_empty = np.empty
_FEW = 16
"""Ids up to which single reads of a list are quicker than the batch kernel, which wants them as an Arrow array."""


def assemble(segment: Segment, entity_id: str, *, out: Float32s | None = None) -> Float32s:
    """The float32 vector of one entity, shape ``(total_element_count,)``: ``out`` if passed, else a new array.

    Numeric fixed-size fields in declaration order, shaped ones row-major; a null reads as its field's default. What
    ``out`` holds after an error is undefined.

    :raises EntityNotFoundError: if the entity has no row. :raises EntityIdError: for an id that is empty or no text.
    :raises InvalidBufferError: for an ``out`` that does not fit. :raises SegmentClosedError: after close.
    """
    view = segment._view
    if out is None:
        out = _empty(view.vector_length, _FLOAT32)
    else:
        buffers.vector_out(out, view.vector_length)
    if type(entity_id) is str and _assemble_one(view.plan, entity_id, out) == FOUND:
        return out
    return _assemble_slowly(segment, _whole_vector, entity_id, out)


def assemble_batch(
    segment: Segment,
    entity_ids: Any,
    *,
    out: Float32s | None = None,
    found_mask: Mask | None = None,
    missing: float = math.nan,
) -> tuple[Float32s, Mask]:
    """The vectors of many entities: float32 of shape ``(N, total_element_count)``, and bool of shape ``(N,)``.

    ``entity_ids`` is a list of str, a NumPy array of str or bytes, a series of pandas or Polars, categories included,
    or an Arrow array of text, which is not copied (see :func:`quorin.engine.rows.intake.id_array`). Rows that are not
    found are filled with ``missing``. Releases the GIL, but for a list of few ids.

    :raises EntityIdError: naming the first id that is empty, null or no text, with its row.
    :raises InvalidBufferError: for buffers that don't fit.
    """
    return _assemble_many(segment, _whole_vector, entity_ids, out, found_mask, missing)


def read(segment: Segment, entity_ids: Any, fields: Sequence[str] | None = None) -> pa.RecordBatch:
    """Exact typed values: the columns ``entity_id`` (as passed), ``found`` (bool), ``event_time_ns`` (int64), and the
    fields.

    One row out per id in, in the same order; everything but the first two is null where an entity is not found. Each
    row is one whole version. Releases the GIL.

    :raises EntityIdError: naming the first id that is empty, null or no text. :raises InvalidRowError: for unknown
        fields.
    """
    return column_reader(segment, fields)(entity_ids).to_batch()


def scan(
    segment: Segment, prefix: str | None = None, limit: int | None = None, fields: Sequence[str] | None = None
) -> pa.RecordBatchReader:
    """All rows, or those whose ids begin with ``prefix``, at most ``limit``, in no particular order: the columns
    ``entity_id``, ``event_time_ns`` and the fields, as :func:`read` returns them and writes take them.

    Batches are read as they are consumed, beside a writer: each row is one whole version, each entity comes at most
    once, and one that has a row throughout comes. All are of the generation at the call, as a flip leaves it, whose
    memory stays until the reader is released. Releases the GIL.

    :raises InvalidRowError: for unknown fields. :raises EntityIdError: for a prefix that is no text. :raises
        ValueError: for a limit that is no number of rows.
    """
    return scan_view(segment.current_view(), prefix, limit, fields)


def column_reader(segment: Segment, fields: Sequence[str] | None = None, *, positions: bool = False) -> ColumnReader:
    """A callable that reads a choice of fields, of any type, as typed columns; what :func:`read` does, without Arrow.

    With ``positions`` it reads the log positions of the rows too.

    :raises InvalidRowError: for fields that the schema does not have.
    """
    return ColumnReader(segment, fields, positions=positions)


def row_reader(parts: Sequence[tuple[Segment, Sequence[str] | None]], *, positions: bool = False) -> RowReader:
    """A callable that reads one entity in several segments at once, some fields of each, as Python values, and the log
    positions of the rows if ``positions``; the fastest for few fields.

    :raises InvalidRowError: for fields that a schema does not have.
    """
    return RowReader(parts, positions=positions)


def reader(segment: Segment, fields: Sequence[str] | None = None) -> Reader:
    """A callable that reads some numeric fields, in the order of ``fields``; for hot loops.

    :raises InvalidRowError: for a field that the schema does not have, or that is not in a vector.
    """
    return Reader(segment, fields)


def prewarm(*, freeze: bool = False) -> None:
    """Load the compiled kernels of reads now rather than at the first read (seconds after an install, then about half a
    second).

    With ``freeze`` Python's cyclic collector is run once, and then never looks again at what is alive now: call it when
    models and all else that lives long is loaded, so that no request waits for a collection of all that.
    """
    from quorin.engine import kernels

    kernels.load(kernels.READING)
    if freeze:
        gc.collect()
        gc.freeze()
        # A full collection waits until a quarter as many objects are new as the last one found: let it find none.
        gc.collect()


class Reader:
    """Bound to a segment and a choice of fields: ``reader(entity_id)`` is one vector, ``reader.batch(ids)`` many.

    ``length`` is the size of a vector. Results and errors are those of :func:`assemble` and :func:`assemble_batch`.
    """

    __slots__ = ("_fields", "_plan", "_segment", "_view", "length")

    def __init__(self, segment: Segment, fields: Sequence[str] | None = None) -> None:
        schema = segment.schema
        by_name = {field.name: field for field in schema.fields}
        requested = [f.name for f in schema.fields if f.element_count] if fields is None else list(fields)
        wrong = [name for name in requested if name not in by_name or not by_name[name].element_count]
        if wrong or not requested:
            raise InvalidRowError(
                f"no vector of {wrong or requested}: {schema.__name__} has the numeric fields "
                f"{[f.name for f in schema.fields if f.element_count]}"
            )
        self._segment = segment
        self._fields = [by_name[name] for name in requested]
        self.length = sum(field.element_count for field in self._fields)
        self._view = segment.current_view()
        self._plan = vector_plan(self._view.descriptor, self._view.stored, self._fields)

    def __call__(self, entity_id: str, out: Float32s | None = None) -> Float32s:
        """The vector of one entity."""
        if out is None:
            out = _empty(self.length, _FLOAT32)
        else:
            buffers.vector_out(out, self.length)
        is_quick = self._segment._view is self._view and type(entity_id) is str
        if is_quick and _assemble_one(self._plan, entity_id, out) == FOUND:
            return out
        return _assemble_slowly(self._segment, self._plan_for, entity_id, out)

    def batch(
        self,
        entity_ids: Any,
        *,
        out: Float32s | None = None,
        found_mask: Mask | None = None,
        missing: float = math.nan,
    ) -> tuple[Float32s, Mask]:
        """The vectors of many entities, and which were found."""
        return _assemble_many(self._segment, self._plan_for, entity_ids, out, found_mask, missing)

    def _plan_for(self, view: SegmentView) -> _Plan:
        if self._view is not view:
            self._plan = vector_plan(view.descriptor, view.stored, self._fields)
            self._view = view
        return self._plan


def _whole_vector(view: SegmentView) -> _Plan:
    return view.plan


def _assemble_one(plan: _Plan, entity_id: str, out: Float32s) -> int:
    """Stands in for the kernel until the first read has loaded it."""
    global _assemble_one
    from quorin.engine.kernels import assemble_one as _assemble_one

    return _assemble_one(plan, entity_id, out)


def _assemble_slowly(
    segment: Segment, plan_for: Callable[[SegmentView], _Plan], entity_id: str, out: Float32s
) -> Float32s:
    """What the quick path leaves: ids that are not ASCII, segments that moved on, contended rows, and all errors."""
    ids = pa.array([check_entity_id(entity_id)], pa.binary())
    found = _empty(1, np.bool_)
    while True:
        view = segment.current_view()
        plan = plan_for(view)
        if read_many(view, plan, ids, out.view(np.uint8), found, math.nan):
            break
    if not found[0]:
        raise EntityNotFoundError(entity_id, view.name)
    return out


def _assemble_many(
    segment: Segment,
    plan_for: Callable[[SegmentView], _Plan],
    entity_ids: Any,
    out: Float32s | None,
    found_mask: Mask | None,
    missing: float,
) -> tuple[Float32s, Mask]:
    first = 0
    if type(entity_ids) is list and 0 < len(entity_ids) <= _FEW:
        plan = plan_for(segment._view)
        out, found_mask = buffers.batch_out(out, found_mask, len(entity_ids), plan.item(P_OUT_BYTES) // 4)
        first = _assemble_few(plan, entity_ids, out)
        found_mask[:first] = True
        if first == len(entity_ids):
            return out, found_mask
    ids = id_array(entity_ids)
    while True:
        view = segment.current_view()
        plan = plan_for(view)
        out, found_mask = buffers.batch_out(out, found_mask, len(ids), int(plan[P_OUT_BYTES]) // 4)
        if read_many(view, plan, ids, out.reshape(-1).view(np.uint8), found_mask, missing, first):
            return out, found_mask


def _assemble_few(plan: _Plan, entity_ids: list[Any], out: Float32s) -> int:
    """Fill rows one by one, until one is not to be had so, for the reasons of :func:`_assemble_slowly`; return how many
    there are.
    """
    for number, (entity_id, row) in enumerate(zip(entity_ids, out, strict=True)):
        if type(entity_id) is not str or _assemble_one(plan, entity_id, row) != FOUND:
            return number
    return len(out)
