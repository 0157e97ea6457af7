"""Reads in NumPy: the oracle that :mod:`quorin.assembly` must equal bit for bit, and a fallback without numba.

The commit rule is kept as a reader keeps it: a row counts only if its stamp was even and its stamp and slot word are
the same after the copy. Python has no fences; on x86-64 none are needed, and elsewhere the compiled reads are the safe
ones.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import RAW_BYTES
from quorin.engine.format.partition import partition_of
from quorin.engine.memory.parts import through_of
from quorin.engine.reads import arguments as buffers
from quorin.engine.reads.ages import age_limits
from quorin.engine.reads.column_plan import column_plan
from quorin.engine.reads.columns import NUMPY_GATHER, Columns
from quorin.engine.reads.last import LastPlan, LastValues, last_batch_of, last_plan, last_values_of
from quorin.engine.reads.not_held import check_held, check_one_held, not_held_of, note_not_held
from quorin.engine.reads.scan import Changes, arrow_batch, arrow_schema, least_positions
from quorin.engine.reads.stored import copy_stored, header_of, is_deleted
from quorin.engine.reads.waiting import DEFAULT_TIMEOUT_MS, wait_for
from quorin.engine.rows.compatibility import fits
from quorin.engine.rows.intake import id_array
from quorin.engine.rows.value import check_entity_id
from quorin.errors import EntityNotFoundError
from quorin.layout import iterate_keys, iterate_occupied

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quorin.engine.arrays import Bytes, Float32s, Int64s, Mask
    from quorin.engine.memory.view import SegmentView
    from quorin.engine.reads.ages import MaxAge
    from quorin.engine.reads.not_held import MissingPartitions
    from quorin.schema import FeatureField
    from quorin.shm import Segment
    from quorin.wal import Token


def assemble(
    segment: Segment,
    entity_id: str,
    *,
    out: Float32s | None = None,
    at_least: Token | str | None = None,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    max_age: MaxAge | None = None,
) -> Float32s:
    """The float32 vector of one entity, shape ``(total_element_count,)``; see :func:`quorin.assembly.assemble`."""
    if at_least is not None:
        wait_for(segment, at_least, timeout_ms=timeout_ms)
    view = segment.current_view()
    out, now = buffers.vector_out(out, view.vector_length), time.time_ns()
    key = check_entity_id(entity_id)
    row = _copy_row(view, key)
    if row is None:
        check_one_held(segment, view, key)
        raise EntityNotFoundError(entity_id, view.name)
    _fill_vector(view, row, out, _outdated(row, _vector_limits(view, max_age), now))
    return out


def assemble_batch(
    segment: Segment,
    entity_ids: Any,
    *,
    out: Float32s | None = None,
    found_mask: Mask | None = None,
    missing: float = math.nan,
    positions: Int64s | None = None,
    at_least: Token | str | None = None,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    max_age: MaxAge | None = None,
    fresh_mask: Mask | None = None,
    missing_partitions: MissingPartitions = "error",
    not_held_mask: Mask | None = None,
) -> tuple[Float32s, Mask]:
    """The vectors of many entities, shape ``(N, total_element_count)``, and which were found; see
    :func:`quorin.assembly.assemble_batch`.
    """
    if at_least is not None:
        wait_for(segment, at_least, timeout_ms=timeout_ms)
    view, now = segment.current_view(), time.time_ns()
    limits = _vector_limits(view, max_age)
    keys = _keys(entity_ids)
    out, found_mask = buffers.batch_out(out, found_mask, len(keys), view.vector_length)
    fresh = buffers.mask_out("fresh_mask", fresh_mask, len(keys))
    if positions is not None:
        buffers.check_positions(positions, len(keys))
    for i, key in enumerate(keys):
        row = _copy_row(view, key)
        found_mask[i] = row is not None
        if positions is not None:
            positions[i] = 0 if row is None else header_of(row)["position"]
        outdated = () if row is None else _outdated(row, limits, now)
        if row is None:
            out[i] = missing
        else:
            _fill_vector(view, row, out[i], outdated)
        if fresh is not None:
            fresh[i] = row is not None and not any(outdated)
    note_not_held(segment, view, id_array(entity_ids), found_mask, missing_partitions, not_held_mask)
    return out, found_mask


def read(
    segment: Segment,
    entity_ids: Any,
    fields: Sequence[str] | None = None,
    *,
    positions: bool = False,
    at_least: Token | str | None = None,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    max_age: MaxAge | None = None,
    missing_partitions: MissingPartitions = "error",
) -> pa.RecordBatch:
    """Exact typed values as Arrow; see :func:`quorin.assembly.read`."""
    if at_least is not None:
        wait_for(segment, at_least, timeout_ms=timeout_ms)
    view, now = segment.current_view(), time.time_ns()
    plan = column_plan(view, fields, positions=positions)
    limits = age_limits(max_age, plan.fields, view.schema.__name__)
    ids = id_array(entity_ids)
    columns = Columns(plan, view, ids, NUMPY_GATHER, limits, now)
    count = len(columns.found)
    columns.buffer[:] = 0
    for i, key in enumerate(_keys(ids)):
        row = _copy_row(view, key)
        columns.found[i] = row is not None
        if row is None:
            continue
        for source, start, size in plan.spans():
            target = start * count + i * size
            columns.buffer[target : target + size] = row[source : source + size]
        for index in np.flatnonzero(_outdated(row, limits, now)):
            (byte, mask), size = plan.null_bits[index], plan.cells[index].byte_count
            first = plan.starts[index] * count + i * size
            columns.buffer[first : first + size] = 0
            columns.buffer[plan.bits_start * count + i * plan.bits_count + byte] &= 0xFF - mask
    if missing_partitions == "mask":
        columns.not_held = np.empty(count, np.bool_)
    note_not_held(segment, view, ids, columns.found, missing_partitions, columns.not_held)
    return columns.to_batch()


def scan(
    segment: Segment, prefix: str | None = None, limit: int | None = None, fields: Sequence[str] | None = None
) -> pa.RecordBatchReader:
    """All rows, or those whose ids begin with ``prefix``; see :func:`quorin.assembly.scan`."""
    ids = [entity_id for entity_id, _ in iterate_occupied(segment) if entity_id.startswith(prefix or "")]
    rows = read(segment, ids[:limit], fields)
    found = rows.filter(rows.column("found")).drop_columns(["found"])
    return pa.RecordBatchReader.from_batches(found.schema, [found])


def changed_since(
    segment: Segment,
    position: int | Token,
    *,
    prefix: str | None = None,
    limit: int | None = None,
    fields: Sequence[str] | None = None,
) -> Changes:
    """Rows and deletions that changed since a position; see :func:`quorin.assembly.changed_since`."""
    view = segment.current_view()
    leasts = least_positions(view, position)
    through = through_of(view)
    plan = column_plan(view, fields, positions=True)
    stored = [(key.decode(), copy_stored(view, key)) for key, _ in iterate_keys(view)]
    rows = [
        (entity_id, is_deleted(row), row)
        for entity_id, row in stored
        if row is not None
        and entity_id.startswith(prefix or "")
        and int(header_of(row)["position"]) >= leasts[partition_of(entity_id, len(leasts))]
    ][:limit]
    columns = Columns(plan, view, range(len(rows)), NUMPY_GATHER)
    columns.found[:] = True
    columns.buffer[:] = 0
    for i, (_, gone, row) in enumerate(rows):
        for source, first, size in plan.spans()[: 2 if gone else None]:
            target = first * len(rows) + i * size
            columns.buffer[target : target + size] = row[source : source + size]
    schema = arrow_schema(plan)
    deleted = np.array([gone for _, gone, _ in rows], np.bool_)
    batch = arrow_batch(columns, pa.array([key for key, _, _ in rows], pa.string()), deleted, schema)
    return Changes(pa.RecordBatchReader.from_batches(schema, [batch]), through)


def read_last(segment: Segment, entity_id: str, field: str, n: int | None = None) -> LastValues:
    """The last values of a field with a history; see :func:`quorin.assembly.read_last`."""
    view = segment.current_view()
    plan = last_plan(view, field, n)
    key = check_entity_id(entity_id)
    row = _copy_row(view, key)
    if row is None:
        check_one_held(segment, view, key)
        raise EntityNotFoundError(entity_id, view.name)
    return last_values_of(plan, _copy_last(plan, row))


def read_last_batch(segment: Segment, entity_ids: Any, field: str, n: int | None = None) -> pa.RecordBatch:
    """The last values of a field of many entities; see :func:`quorin.assembly.read_last_batch`."""
    view = segment.current_view()
    plan = last_plan(view, field, n)
    ids = id_array(entity_ids)
    rows = [_copy_row(view, key) for key in _keys(ids)]
    found = np.array([row is not None for row in rows], np.bool_)
    out = np.zeros((len(rows), plan.row_bytes), np.uint8)
    for target, row in zip(out, rows, strict=True):
        if row is not None:
            target[:] = _copy_last(plan, row)
    check_held(segment, view, ids, not_held_of(view, ids, found))
    return last_batch_of(plan, ids, found, out.reshape(-1))


def _copy_last(plan: LastPlan, row: Bytes) -> Bytes:
    out = np.zeros(plan.row_bytes, np.uint8)
    for source, target, _, count, code in plan.spans:
        if code == RAW_BYTES:
            out[target : target + count] = row[source : source + count]
    return out


def _keys(entity_ids: Any) -> list[bytes]:
    keys: list[bytes] = id_array(entity_ids).cast(pa.large_binary()).to_pylist()
    for i, key in enumerate(keys):
        if not key:
            raise buffers.empty_id(i)
    return keys


def _copy_row(view: SegmentView, key: bytes) -> Bytes | None:
    """A whole version of a key's row; None if it has none, or is deleted."""
    row = copy_stored(view, key)
    return None if row is None or is_deleted(row) else row


def _vector_limits(view: SegmentView, max_age: MaxAge | None) -> Sequence[int] | None:
    """The age limits of the fields, in ns; 0 for fields that are not in a vector."""
    limits = age_limits(max_age, view.schema.fields, view.schema.__name__)
    if limits is None:
        return None
    return [limit if field.element_count else 0 for field, limit in zip(view.schema.fields, limits, strict=True)]


def _outdated(row: Bytes, limits: Sequence[int] | None, now_ns: int) -> Sequence[bool]:
    """For each field, whether a row is over its age limit; nothing without limits."""
    event_time = int(row[: fmt.KEY_OFFSET].view(fmt.ROW_HEADER_DTYPE)[0]["event_time_ns"])
    return [limit > 0 and event_time < now_ns - limit for limit in limits or ()]


def _fill_vector(view: SegmentView, row: Bytes, out: Float32s, outdated: Sequence[bool] = ()) -> None:
    body = row[view.layout.body_offset :]
    target = 0
    cells = {cell.field.name: cell for cell in fmt.body_layout(view.stored).cells}
    for index, field in enumerate(view.schema.fields):
        count = field.element_count
        if not count:
            continue
        values = out[target : target + count]
        cell = cells.get(field.name)
        if cell is None or not fits(cell.field, field) or (outdated and outdated[index]):
            values[:] = field.vector_default
        elif body[cell.null_byte] & cell.null_mask:
            stored = body[cell.offset : cell.offset + cell.byte_count].view(_stored_dtype(cell.field))
            with np.errstate(over="ignore", invalid="ignore"):
                values[:] = stored.astype(np.float32)
        else:
            values[:] = field.vector_default
        target += count


def _stored_dtype(field: FeatureField) -> np.dtype[Any]:
    """Booleans are bytes of 0 and 1."""
    return np.dtype(np.uint8) if field.dtype.numpy == np.bool_ else field.dtype.numpy
