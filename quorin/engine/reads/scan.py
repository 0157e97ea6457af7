"""All rows of a segment, or those whose ids begin alike, as Arrow batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from quorin.engine.format.abi import CONTENDED, CORRUPT, S_CODE, S_ROWS, SCAN_ITEMS
from quorin.engine.reads.column_plan import column_plan
from quorin.engine.reads.columns import Columns
from quorin.engine.reads.gather import COMPILED_GATHER
from quorin.engine.rows.column import arrow_type_of
from quorin.errors import CorruptSegmentError, EntityIdError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from quorin.engine.arrays import Bytes, Int64s
    from quorin.engine.memory.view import SegmentView
    from quorin.engine.reads.column_plan import ColumnPlan

_MAX_BATCH_ROWS = 1 << 16
_MAX_BATCH_BYTES = 16 << 20
_BATCH_ROWS_OF_LARGE_HEAPS, _LARGE_HEAP_BYTES = 1 << 10, 1 << 31
"""An Arrow array holds 2**31-1 bytes of values."""
_MAX_ROUNDS = 1000
"""Times that the kernel may give up on one row, each after many attempts of its own, before it counts as damaged."""


def scan_view(
    view: SegmentView, prefix: str | None, limit: int | None, fields: Sequence[str] | None
) -> pa.RecordBatchReader:
    """The rows of one generation; see :func:`quorin.assembly.scan`."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ValueError(f"limit: expected a whole number of rows, 0 or more, or None, got {limit!r}")
    if prefix is not None and not isinstance(prefix, str):
        raise EntityIdError(f"prefix: expected the text that ids begin with, or None, got {prefix!r}")
    plan = column_plan(view, fields)
    columns = [pa.field(field.name, arrow_type_of(field)) for field in plan.fields]
    schema = pa.schema([pa.field("entity_id", pa.string()), pa.field("event_time_ns", pa.int64()), *columns])
    start = np.frombuffer((prefix or "").encode(), np.uint8).copy()
    return pa.RecordBatchReader.from_batches(schema, _batches(view, plan, start, limit, schema))


def _batches(
    view: SegmentView,
    plan: ColumnPlan,
    prefix: Bytes,
    limit: int | None,
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    from quorin.engine import kernels

    batch_rows = _batch_rows(view, plan)
    result = np.empty(SCAN_ITEMS, np.int64)
    slot, remaining, rounds = 0, view.layout.row_limit if limit is None else limit, 0
    while slot < view.layout.slot_count and remaining > 0:
        rows = min(batch_rows, remaining)
        columns = Columns(plan, view, range(rows), COMPILED_GATHER)
        id_ends = np.zeros(rows + 1, np.int64)
        ids = np.empty(max(view.layout.max_id_bytes, min(_MAX_BATCH_BYTES, rows * view.layout.max_id_bytes)), np.uint8)
        words, first, last = plan.words(rows), slot, view.layout.slot_count
        slot = kernels.scan_rows(words, first, last, prefix, rows, id_ends, ids, columns.buffer, result)
        copied, code = int(result[S_ROWS]), int(result[S_CODE])
        rounds = rounds + 1 if code == CONTENDED and slot == first else 0
        if code == CORRUPT or rounds > _MAX_ROUNDS:
            raise CorruptSegmentError(
                f"segment {view.name!r} is damaged: the row of slot {slot} points outside the file, or never holds "
                "still; fill a new one"
            )
        if copied:
            remaining -= copied
            yield _batch(columns, copied, id_ends, ids, schema)


def _batch_rows(view: SegmentView, plan: ColumnPlan) -> int:
    """How many rows a batch has: few enough for its memory, and for the values of each column to fit an array."""
    most = _BATCH_ROWS_OF_LARGE_HEAPS if view.layout.heap_bytes >= _LARGE_HEAP_BYTES else _MAX_BATCH_ROWS
    return max(1, min(most, _MAX_BATCH_BYTES // plan.row_bytes))


def _batch(columns: Columns, copied: int, id_ends: Int64s, ids: Bytes, schema: pa.Schema) -> pa.RecordBatch:
    """The first ``copied`` rows of filled columns."""
    columns.found[:] = True
    columns.drop(np.arange(len(columns.found)) >= copied)
    ends = pa.py_buffer(id_ends[: copied + 1].astype(np.int32))
    entity_ids = pa.Array.from_buffers(pa.string(), copied, [None, ends, pa.py_buffer(ids[: int(id_ends[copied])])])
    times = pa.array(columns.event_time_ns[:copied])
    values = (columns.arrow(index).slice(0, copied) for index in range(len(columns.fields)))
    return pa.RecordBatch.from_arrays([entity_ids, times, *values], schema=schema)
