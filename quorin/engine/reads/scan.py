"""Rows of a segment that are not asked for by id: all, those whose ids begin alike, those changed since a position."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from quorin.engine.format.abi import CONTENDED, CORRUPT, LIVE_ROWS, S_CODE, S_ROWS, SCAN_ITEMS
from quorin.engine.log.token import Token
from quorin.engine.memory.closed import closed_log
from quorin.engine.memory.parts import check_one_partition, through_of
from quorin.engine.reads.column_plan import column_plan
from quorin.engine.reads.columns import Columns
from quorin.engine.reads.gather import COMPILED_GATHER
from quorin.engine.rows.column import arrow_type_of
from quorin.engine.rows.partitions import partitions_of
from quorin.errors import ChangesForgottenError, CorruptSegmentError, EntityIdError, TokenError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from quorin.engine.arrays import Bytes, Int64s, Mask
    from quorin.engine.memory.view import SegmentView
    from quorin.engine.reads.column_plan import ColumnPlan

POSITION, DELETED = "position", "deleted"
_MAX_BATCH_ROWS = 1 << 16
_MAX_BATCH_BYTES = 16 << 20
_BATCH_ROWS_OF_LARGE_HEAPS, _LARGE_HEAP_BYTES = 1 << 10, 1 << 31
"""An Arrow array holds 2**31-1 bytes of values."""
_MAX_ROUNDS = 1000
"""Times that the kernel may give up on one row, each after many attempts of its own, before it counts as damaged."""


class Changes(NamedTuple):
    """What changed in a segment since a position: all that the log has from there up to position ``through``; of
    several partitions, a token.

    ``batches`` are read as they are consumed. Some of their rows may be later than ``through``, where a writer goes on
    meanwhile: they come again in the changes since ``through``.
    """

    batches: pa.RecordBatchReader
    through: int | Token


def scan_view(
    view: SegmentView, prefix: str | None, limit: int | None, fields: Sequence[str] | None
) -> pa.RecordBatchReader:
    """The rows of one generation; see :func:`quorin.assembly.scan`."""
    start = _start(prefix, limit)
    plan = column_plan(view, fields)
    schema = arrow_schema(plan)
    return pa.RecordBatchReader.from_batches(schema, _batches(view, plan, start, LIVE_ROWS, limit, schema))


def changes_view(
    view: SegmentView, position: int | Token, prefix: str | None, limit: int | None, fields: Sequence[str] | None
) -> Changes:
    """The changes of one generation; see :func:`quorin.assembly.changed_since`."""
    start = _start(prefix, limit)
    leasts = least_positions(view, position)
    plan = column_plan(view, fields, positions=True)
    schema = arrow_schema(plan)
    # Read before the first row: what was applied up to there is in the rows.
    through = through_of(view)
    batches = _batches(view, plan, start, int(leasts.min()), limit, schema, leasts)
    return Changes(pa.RecordBatchReader.from_batches(schema, batches), through)


def least_positions(view: SegmentView, position: int | Token) -> Int64s:
    """The least position of a row that changed since ``position``, for each partition; rows without a log changed since
    0. Those of partitions that are not held are the highest there are.

    :raises ValueError: for a position that is no position. :raises PartitionedError: for one that is no token, with
        several partitions. :raises TokenError: for a token of another log. :raises ChangesForgottenError: if the view
        does not have all deletions since then.
    """
    if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < 1 << 63:
        raise ValueError(f"position: expected a position of the log, 0 or more, got {position!r}")
    leasts = np.full(view.layout.partition_count, np.iinfo(np.int64).max)
    for partition, since in _since(view, position).items():
        forgotten = int(view.header["partitions"][partition]["forgotten"])
        if 0 < since < forgotten:
            raise ChangesForgottenError(view.name, since, forgotten)
        leasts[partition] = since + 1 if since else 0
    return leasts


def _since(view: SegmentView, position: int | Token) -> dict[int, int]:
    """A position for each partition that is held."""
    if view.layout.partition_count == 1:
        return {0: position}
    if position and not isinstance(position, Token):
        check_one_partition(view, f"changes since position {position}, which is no token")
    since = dict.fromkeys(sorted(view.partitioning.held), 0)
    token = position if isinstance(position, Token) else Token()
    for identity, at in token.parts:
        for partition in _partitions_of_log(view, token, identity, at):
            since[partition] = max(since[partition], at)
    return since


def _partitions_of_log(view: SegmentView, token: Token, identity: int, position: int) -> Sequence[int]:
    """The held partitions that have the rows of a log; of one that was closed, all that followed it.

    :raises TokenError: for a log that is known to be another, and for a position that a closed log does not have.
    """
    identities = view.header["partitions"]["log_identity"][: view.layout.partition_count].tolist()
    if identity in identities:
        partition = identities.index(identity)
        return [partition] if partition in view.partitioning.held else []
    closed = closed_log(view, identity)
    is_known = closed is not None and not (closed.partitions and closed.position < position)
    if not is_known and (closed is not None or all(identities)):
        raise TokenError(f"token {token.text} is of another log than the partitions of {view.name!r} follow")
    return () if closed is None else closed.partitions


def arrow_schema(plan: ColumnPlan) -> pa.Schema:
    """The columns of a scan, or, with positions, of changes; a field with the name of another column is
    ``<name>:field``.
    """
    names = ["entity_id", "event_time_ns"]
    types = [pa.string(), pa.int64()]
    if plan.has_positions:
        names += [POSITION, DELETED]
        types += [pa.int64(), pa.bool_()]
    names += [f"{field.name}:field" if field.name in names else field.name for field in plan.fields]
    return pa.schema(list(zip(names, [*types, *map(arrow_type_of, plan.fields)], strict=True)))


def arrow_batch(columns: Columns, ids: pa.Array, deleted: Mask, schema: pa.Schema) -> pa.RecordBatch:
    """As many rows of filled columns as there are ids, and, with positions, which are deletions."""
    count = len(ids)
    arrays = [ids, pa.array(columns.event_time_ns[:count])]
    if len(schema) > len(arrays) + len(columns.fields):
        arrays += [pa.array(columns.positions[:count]), pa.array(deleted[:count])]
    arrays += [columns.arrow(index).slice(0, count) for index in range(len(columns.fields))]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _start(prefix: str | None, limit: int | None) -> Bytes:
    """The bytes that ids begin with, once the arguments are checked."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ValueError(f"limit: expected a whole number of rows, 0 or more, or None, got {limit!r}")
    if prefix is not None and not isinstance(prefix, str):
        raise EntityIdError(f"prefix: expected the text that ids begin with, or None, got {prefix!r}")
    return np.frombuffer((prefix or "").encode(), np.uint8).copy()


def _batches(
    view: SegmentView,
    plan: ColumnPlan,
    prefix: Bytes,
    least: int,
    limit: int | None,
    schema: pa.Schema,
    leasts: Int64s | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of the rows from position ``least`` on; of several partitions, of those from the one in ``leasts`` on."""
    from quorin.engine import kernels

    batch_rows = _batch_rows(view, plan)
    result = np.empty(SCAN_ITEMS, np.int64)
    slot, remaining, rounds = 0, view.layout.row_limit if limit is None else limit, 0
    while slot < view.layout.slot_count and remaining > 0:
        rows = min(batch_rows, remaining)
        columns = Columns(plan, view, range(rows), COMPILED_GATHER)
        id_ends = np.zeros(rows + 1, np.int64)
        ids = np.empty(max(view.layout.max_id_bytes, min(_MAX_BATCH_BYTES, rows * view.layout.max_id_bytes)), np.uint8)
        deleted = np.zeros(rows, np.bool_)
        words, first, last = plan.words(rows), slot, view.layout.slot_count
        slot = kernels.scan_rows(words, first, last, prefix, least, rows, id_ends, ids, deleted, columns.buffer, result)
        copied, code = int(result[S_ROWS]), int(result[S_CODE])
        rounds = rounds + 1 if code == CONTENDED and slot == first else 0
        if code == CORRUPT or rounds > _MAX_ROUNDS:
            raise CorruptSegmentError(
                f"segment {view.name!r} is damaged: the row of slot {slot} points outside the file, or never holds "
                "still; fill a new one"
            )
        if copied:
            batch = arrow_batch(columns, _filled(columns, copied, id_ends, ids), deleted, schema)
            if leasts is not None and len(leasts) > 1:
                batch = batch.filter(changed_in(batch, leasts))
            remaining -= batch.num_rows
            yield batch


def changed_in(batch: pa.RecordBatch, leasts: Int64s) -> pa.Array:
    """Which rows of changes are from the least position of their partition on."""
    partitions = partitions_of(batch.column(0), len(leasts))
    return pa.array(batch.column(POSITION).to_numpy() >= leasts[partitions])


def _batch_rows(view: SegmentView, plan: ColumnPlan) -> int:
    """How many rows a batch has: few enough for its memory, and for the values of each column to fit an array."""
    most = _BATCH_ROWS_OF_LARGE_HEAPS if view.layout.heap_bytes >= _LARGE_HEAP_BYTES else _MAX_BATCH_ROWS
    return max(1, min(most, _MAX_BATCH_BYTES // plan.row_bytes))


def _filled(columns: Columns, copied: int, id_ends: Int64s, ids: Bytes) -> pa.Array:
    """Take the rows behind the first ``copied`` for not found, and return the ids of these."""
    columns.found[:] = True
    if copied < len(columns.found):
        columns.drop(np.arange(len(columns.found)) >= copied)
    ends = pa.py_buffer(id_ends[: copied + 1].astype(np.int32))
    return pa.Array.from_buffers(pa.string(), copied, [None, ends, pa.py_buffer(ids[: int(id_ends[copied])])])
