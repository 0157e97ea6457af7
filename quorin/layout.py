"""Rows into a segment, one at a time or in bulk, and the reference for how a row is found.

Everything that writes ends in :func:`apply_batch`, whose order is that of event times: an older event never overwrites
a newer one; of two with the same time the one with the larger tie-breaker wins, where the schema has one, then the one
with the later log position, and then the later row. So applying anything twice, or in another order, has the same
result.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import DELETE, DONE, R_APPLIED, R_CREATED, RESULT_ITEMS, ROWS_FULL, UPSERT
from quorin.engine.format.hashing import hash_bytes
from quorin.engine.memory.growth import grow
from quorin.engine.reads.not_held import check_held, check_one_held, not_held_of
from quorin.engine.rows import packed as packing
from quorin.engine.rows.column import numbers, text_lengths
from quorin.engine.rows.packed import unpack_row
from quorin.engine.rows.value import check_entity_id, check_event_time
from quorin.errors import CapacityExceededError, EntityIdTooLongError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from quorin.engine.arrays import Int64s
    from quorin.engine.memory.view import SegmentView
    from quorin.schema import Schema
    from quorin.shm import Segment

__all__ = [
    "CapacityExceededError",
    "EntityIdTooLongError",
    "StringPoolExhaustedError",
    "apply_batch",
    "delete",
    "insert",
    "insert_many",
    "iterate_occupied",
    "lookup",
    "pack_row",
    "unpack_row",
]

StringPoolExhaustedError = EntityIdTooLongError


def pack_row(schema: Schema, /, **fields: Any) -> bytes:
    """One row as bytes for :func:`insert`. Every field is required; ``None`` is a null.

    :raises InvalidRowError: for a missing or unknown field, or a value that its field can't hold unchanged (it names
        both).
    """
    return packing.pack_row(schema, fields)


def insert(segment: Segment, entity_id: str, row: bytes, *, event_time_ns: int | None = None) -> bool:
    """Write one packed row; True if the entity is new. Without an event time it is now.

    Nothing changes if the stored row is newer. The row is in shared memory, not in the log: it is as durable as that
    is. Rows of partitions that are not held are refused, here and in :func:`insert_many`.

    :raises EntityIdError, EntityIdTooLongError: for a bad id. :raises InvalidRowError: if ``row`` is no row of the
        schema.
    :raises WriterLeaseHeldError: if another process is the writer. :raises CapacityExceededError: if memory is out.
    :raises NotHeldError: if the entity's partition is not held.
    """
    columns = packing.packed_columns(segment.schema, row)
    with segment.writing:
        view = segment.writing_view()
        if view.is_partial:
            check_one_held(segment, view, check_entity_id(entity_id))
        if view.stored is not segment.schema:
            from quorin.engine.rows.batch import row_batch

            values = unpack_row(segment.schema, row)
            return bool(
                _apply_columnar(segment, row_batch(segment.schema, entity_id, values, event_time_ns))[R_CREATED]
            )
        return bool(_apply_one(segment, entity_id, columns, UPSERT, event_time_ns, len(row))[R_CREATED])


def insert_many(segment: Segment, table: Any, *, event_time_ns: int | None = None) -> int:
    """Write many rows: ``entity_id``, optional ``event_time_ns``, the fields; ``table`` is as for
    :func:`quorin.engine.rows.batch.to_batch`.

    Returns how many took effect: rows older than the stored ones don't. Of duplicates the newest wins. All values are
    checked before the first row is written.

    :raises InvalidRowError, EntityIdError: naming column, row and value. :raises WriterLeaseHeldError: if another
        writes.
    """
    from quorin.engine.rows.batch import to_batch

    view = segment.current_view()
    batch = to_batch(segment.schema, table, event_time_ns=event_time_ns, max_id_bytes=view.layout.max_id_bytes)
    check_held(segment, view, batch.column(0), not_held_of(view, batch.column(0), np.zeros(batch.num_rows, np.bool_)))
    return apply_batch(segment, batch)


def delete(segment: Segment, entity_id: str, *, event_time_ns: int | None = None) -> bool:
    """Remove an entity as of an event time (now if left out); True if it had a row and has none any more.

    What remains is the fact of the deletion, so that an older row that comes late does not bring the entity back.
    """
    from quorin.engine.rows.batch import delete_batch

    before = lookup(segment, entity_id)
    with segment.writing:
        columns = packing.general_columns(segment.writing_view().stored, delete_batch([entity_id], event_time_ns))
        result = _apply_one(segment, entity_id, columns, DELETE, event_time_ns, 0)
    return before is not None and bool(result[R_APPLIED])


def apply_batch(
    segment: Segment,
    batch: pa.RecordBatch,
    *,
    position: int | pa.Array = 0,
    kind: int = UPSERT,
    keeps_deletions: bool = False,
) -> int:
    """Apply a canonical batch (see :mod:`quorin.engine.rows.batch`) as its kind says: upsert, delete, or partial
    update.

    ``position`` is the log position of all rows, or of each (int64, without nulls).

    Each row is published on its own, whole; a crash in between leaves a prefix applied, and applying again completes
    it. The segment grows as needed, and forgets old deletions then, unless ``keeps_deletions``: where rows do not come
    in the order of the log, those before a deletion may still come. Returns how many rows took effect.

    A batch of another version of the segment's schema is translated by name
    (:func:`quorin.engine.log.record.translate_batch`).

    :raises EntityIdTooLongError: if an id exceeds the segment's limit; nothing is applied then.
    """
    return int(_apply_columnar(segment, batch, position, kind, keeps_deletions=keeps_deletions)[R_APPLIED])


def _apply_columnar(
    segment: Segment,
    batch: pa.RecordBatch,
    position: int | pa.Array = 0,
    kind: int = UPSERT,
    *,
    keeps_deletions: bool = False,
) -> Int64s:
    from quorin.engine import kernels

    with segment.writing:
        view = segment.writing_view()
        if view.stored is not segment.schema:
            from quorin.engine.log.record import translate_batch

            batch = translate_batch(batch, kind, view.stored)
        located, rows = packing.locate(view.stored, batch), batch.num_rows
        offsets, width, _ = located.ids
        if kernels.longest_id(offsets, width, rows) > view.layout.max_id_bytes:
            raise _too_long(view, batch.column(0))
        positions = np.array(position, np.int64) if isinstance(position, int) else numbers(position, np.int64)
        located_positions = (int(positions.__array_interface__["data"][0]), 8 * positions.ndim)
        return apply_located(
            segment,
            view,
            located,
            kind,
            located_positions,
            rows,
            lambda: batch.nbytes,
            keeps_deletions=keeps_deletions,
        )


def lookup(segment: Segment, entity_id: str) -> int | None:
    """Where an entity's row begins, in bytes from the start of the segment's file; None if it has none.

    The reference: Python over the layout of :mod:`quorin.engine.format.segment`.

    :raises NotHeldError: if the segment does not hold its partition.
    """
    view, key = segment.current_view(), check_entity_id(entity_id)
    found = find_row(view, key)
    if found is None:
        check_one_held(segment, view, key)
        return None
    _, row = found
    header = view.mapping.memory[row : row + fmt.KEY_OFFSET].view(fmt.ROW_HEADER_DTYPE)[0]
    return None if int(header["flags"]) & fmt.FLAG_DELETED else row


def iterate_occupied(segment: Segment) -> Iterator[tuple[str, int]]:
    """Every entity that has a row: its id, and where the row begins in the file. In no particular order."""
    view = segment.current_view()
    for key, row in iterate_keys(view):
        header = view.mapping.memory[row : row + fmt.KEY_OFFSET].view(fmt.ROW_HEADER_DTYPE)[0]
        if not int(header["flags"]) & fmt.FLAG_DELETED:
            yield key.decode(), row


def iterate_keys(view: SegmentView) -> Iterator[tuple[bytes, int]]:
    """Every key, deleted entities' included, and where its row begins in the file. In no particular order."""
    layout = view.layout
    slots = view.mapping.memory[layout.index_offset :][: 8 * layout.slot_count].view(np.uint64)
    for word in slots[slots != 0].tolist():
        row = layout.rows_offset + ((word & 0xFFFFFFFF) - 1) * layout.row_stride
        yield row_key(view, row), row


def find_row(view: SegmentView, key: bytes) -> tuple[int, int] | None:
    """The slot of a key (its offset in the file) and the row it points to; a deleted row counts as found."""
    layout = view.layout
    memory = view.mapping.memory
    seed = view.header["seed"]
    h = hash_bytes(key, (int(seed[0]), int(seed[1])))
    slot = (h * layout.slot_count) >> 64
    for _ in range(layout.slot_count):
        offset = layout.index_offset + 8 * slot
        word = int(memory[offset : offset + 8].view(np.uint64)[0])
        if word == 0:
            return None
        row = layout.rows_offset + ((word & 0xFFFFFFFF) - 1) * layout.row_stride
        if word >> 32 == h & 0xFFFFFFFF and row_key(view, row) == key:
            return offset, row
        slot = (slot + 1) % layout.slot_count
    return None


def row_key(view: SegmentView, row: int) -> bytes:
    """The UTF-8 bytes of a row's entity id."""
    memory, layout = view.mapping.memory, view.layout
    count = int(memory[row : row + fmt.KEY_OFFSET].view(fmt.ROW_HEADER_DTYPE)[0]["key_bytes"])
    start = row + fmt.KEY_OFFSET
    if count > layout.key_inline:
        start = layout.heap_offset + int(memory[row + fmt.LONG_KEY_OFFSET :][:8].view(np.uint64)[0])
    return memory[start : start + count].tobytes()


def _apply_one(
    segment: Segment, entity_id: str, columns: packing.ColumnTable, kind: int, event_time_ns: int | None, size: int
) -> Int64s:
    with segment.writing:
        view = segment.writing_view()
        key = check_entity_id(entity_id, view.layout.max_id_bytes)
        ids = np.frombuffer(key, np.uint8)
        offsets = np.array([0, len(key)], np.int64)
        times = np.array([time.time_ns() if event_time_ns is None else check_event_time(event_time_ns)], np.int64)
        positions = np.zeros(1, np.int64)
        located = packing.Located(columns, (offsets.ctypes.data, 8, ids.ctypes.data), times.ctypes.data)
        return apply_located(segment, view, located, kind, (positions.ctypes.data, 0), 1, lambda: size + len(key))


def apply_located(
    segment: Segment,
    view: SegmentView,
    located: packing.Located,
    kind: int,
    positions: tuple[int, int],
    rows: int,
    size: Callable[[], int],
    *,
    keeps_deletions: bool = False,
) -> Int64s:
    """Run the kernel over a batch of ``rows``, growing the segment whenever it is full; ``segment.writing`` is held,
    and ``view`` is its writing view. ``positions`` are an address and their stride in bytes. ``size`` bounds the
    heap needed.
    """
    from quorin.engine import kernels

    result = np.zeros(RESULT_ITEMS, np.int64)
    columns = located.columns
    batch = np.array([rows, kind, columns.tie, *located.ids, located.times, *positions, *columns.rings], np.int64)
    while True:
        code = kernels.apply_rows(view.descriptor, columns.words, batch, result)
        if code == DONE:
            return result
        grow(segment, rows=code == ROWS_FULL, heap_bytes=2 * size(), keeps_deletions=keeps_deletions)
        view = segment.writing_view()


def _too_long(view: SegmentView, ids: pa.Array) -> EntityIdTooLongError:
    lengths = text_lengths(ids)
    index = int(lengths.argmax())
    return EntityIdTooLongError(
        f"row {index}: entity id {ids[index].as_py()!r} has {lengths[index]} bytes, "
        f"the limit is {view.layout.max_id_bytes}"
    )
