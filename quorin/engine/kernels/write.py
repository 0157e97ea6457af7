"""The write kernels: apply rows, repair the books after a writer's death.

They follow the commit rule of :mod:`quorin.engine.format.segment` from the writer's side, and may run in one process
at a time: the one that holds the writer lease.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format.abi import (
    B_EVENT_TIMES,
    B_IDS,
    B_MODE,
    B_OFFSET_BYTES,
    B_OFFSETS,
    B_POSITION_STEP,
    B_POSITIONS,
    B_RING_COUNT,
    B_ROWS,
    B_TIE,
    C_CELL,
    C_ITEM_BYTES,
    C_KIND,
    C_NULL_BYTE,
    C_NULL_MASK,
    C_VALUES,
    COLUMN_ITEMS,
    D_BODY_BYTES,
    D_BODY_OFFSET,
    D_CAPACITY,
    D_HEADER,
    D_HEAP,
    D_HEAP_BYTES,
    D_KEY_INLINE,
    D_ROW_STRIDE,
    D_ROWS,
    D_SEED_0,
    D_SEED_1,
    D_SLOT_COUNT,
    DELETE,
    DONE,
    HEAP_FULL,
    KIND_FIXED,
    PARTIAL,
    R_APPLIED,
    R_CREATED,
    R_NEXT,
    ROWS_FULL,
    UPSERT,
)
from quorin.engine.kernels.compiling import helper, inlined, unlocked_kernel
from quorin.engine.kernels.free_rows import give_back_row, take_free_row
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.heap import (
    find_variable_columns,
    heap_needed,
    heap_replaced,
    take_heap,
    write_variable,
    write_variables,
)
from quorin.engine.kernels.memory import (
    array_address,
    copy_bytes,
    fence_release,
    load_i64,
    load_u8,
    load_u16,
    load_u64,
    prefetch,
    store_i64,
    store_release,
    store_u8,
    store_u16,
    store_u64,
)
from quorin.engine.kernels.read import key_equals, load_offset, row_address
from quorin.engine.kernels.rings import NO_TIE, begin_rings, join_rings, joins_rings
from quorin.engine.kernels.rows import (
    CELL_SIZE,
    DELETED,
    DELETED_COUNT,
    ENTITY_COUNT,
    EVENT_TIME,
    FLAGS,
    HAS_NULLS,
    HEAP_GARBAGE,
    HEAP_USED,
    KEY,
    KEY_BYTES,
    LONG_KEY,
    ONE,
    POSITION,
    STAMP,
    aligned,
    count_change,
    counter,
    home_slot,
    probe,
    row_index,
    slot_address,
    slot_word,
)
from quorin.engine.kernels.staging import is_null, stage_rows, zero

_BLOCK = 128
"""So many rows of a batch are looked up ahead, and prepared: enough to hide the latency of memory."""
_STAGED_BYTES = 128 << 10
"""Of wide rows so many bytes at most, which the cache holds beside the columns they come from."""


@unlocked_kernel
def apply_rows(segment, columns, batch, result):
    """Apply the rows of a batch from ``result[R_NEXT]`` on, each published on its own, in order.

    A row older in event time than the stored one is skipped; of one time, the one with the lower tie-breaker; then the
    one with the lower log position. It may still join last values. ``batch`` says where ids, times and positions are
    (``B_IDS`` and so on), and ``columns`` is the column table. Adds to ``result`` how many rows took effect and how
    many entities are new, and sets in it the first row that was not applied: the batch is DONE, or the segment is out
    of rows (ROWS_FULL) or heap (HEAP_FULL) and must grow first.
    """
    mode, first, last = batch[B_MODE], result[R_NEXT], batch[B_ROWS]
    block = max(1, min(_BLOCK, last - first, _STAGED_BYTES // segment[D_BODY_BYTES]))
    hashes = np.empty(block, np.uint64)
    flags = np.empty(block, np.uint8)
    staged = np.empty(block * segment[D_BODY_BYTES] if mode == UPSERT else 0, np.uint8)
    heap_columns = np.empty(columns.size // COLUMN_ITEMS, np.int64)
    heap_columns = heap_columns[: find_variable_columns(columns, mode, heap_columns)]
    for i in range(first, last):
        result[R_NEXT] = i
        r = (i - first) % block
        if r == 0:
            end = min(i + block, last)
            look_ahead(segment, batch, i, end, hashes)
            if mode == UPSERT:
                stage_rows(columns, segment[D_BODY_BYTES], i, end, array_address(staged), flags)
        key, count = id_address(batch, i), id_bytes(batch, i)
        slot = find_slot(segment, key, count, hashes[r])
        word = load_u64(slot)
        old, alive = np.int64(0), False
        if word != 0:
            old = row_address(segment, word)
            if is_outdated(segment, old, columns, batch, i):
                if batch[B_RING_COUNT] > 0 and not join_late(segment, slot, hashes[r], columns, batch, i, result):
                    return ROWS_FULL
                continue
            alive = load_u16(old + FLAGS) & DELETED == 0
        elif counter(segment, ENTITY_COUNT) + counter(segment, DELETED_COUNT) >= segment[D_CAPACITY]:
            return ROWS_FULL
        long_key = count if word == 0 and count > segment[D_KEY_INLINE] else 0
        heap = heap_needed(columns, heap_columns, i) + aligned(long_key)
        if counter(segment, HEAP_USED) + heap > segment[D_HEAP_BYTES]:
            return HEAP_FULL
        index = take_free_row(segment)
        if index < 0:
            return ROWS_FULL

        row = segment[D_ROWS] + index * segment[D_ROW_STRIDE]
        stamp = begin_row(segment, row)
        store_i64(row + EVENT_TIME, event_time(batch, i))
        store_i64(row + POSITION, log_position(batch, i))
        write_key(segment, row, old, key, count)
        if mode == UPSERT:
            body = array_address(staged) + r * segment[D_BODY_BYTES]
            copy_bytes(row + segment[D_BODY_OFFSET], body, segment[D_BODY_BYTES])
            write_variables(segment, row, columns, heap_columns, i)
            store_u16(row + FLAGS, flags[r])
        elif mode == PARTIAL:
            store_u16(row + FLAGS, change_body(segment, row, old if alive else 0, columns, i))
        else:
            store_u16(row + FLAGS, DELETED)
        if batch[B_RING_COUNT] > 0 and mode != DELETE:
            write_rings(segment, row, old, alive, columns, batch, i)
        publish_row(row, stamp, slot, slot_word(hashes[r], index))

        count_row(segment, mode != DELETE, word != 0, alive, result)
        if word != 0:
            if alive:
                count_change(segment, HEAP_GARBAGE, heap_replaced(segment, old, columns, heap_columns))
            give_back_row(segment, row_index(word))
    result[R_NEXT] = last
    return DONE


@helper
def id_address(batch, i):
    """The address of the id of row ``i``."""
    return batch[B_IDS] + load_offset(batch[B_OFFSETS], batch[B_OFFSET_BYTES], i)


@helper
def id_bytes(batch, i):
    """The size of the id of row ``i``."""
    offsets, width = batch[B_OFFSETS], batch[B_OFFSET_BYTES]
    return load_offset(offsets, width, i + 1) - load_offset(offsets, width, i)


@inlined
def event_time(batch, i):
    """The event time of row ``i``."""
    return load_i64(batch[B_EVENT_TIMES] + 8 * i)


@inlined
def log_position(batch, i):
    """The log position of row ``i``."""
    return load_i64(batch[B_POSITIONS] + batch[B_POSITION_STEP] * i)


@helper
def is_outdated(segment, old, columns, batch, i):
    """Whether the stored row stays: by event time, then by tie-breaker, then by log position it is after row ``i``."""
    time, stored = event_time(batch, i), load_i64(old + EVENT_TIME)
    if time != stored:
        return time < stored
    order = 0 if batch[B_TIE] < 0 else tie_order(segment, old, columns, batch, i)
    if order != 0:
        return order < 0
    return log_position(batch, i) < load_i64(old + POSITION)


@helper
def tie_order(segment, old, columns, batch, i):
    """How row ``i`` compares to the stored row by the tie-breaker: below 0 before it, above 0 after it."""
    body, stored, new = old + segment[D_BODY_OFFSET], NO_TIE, row_tie(columns, batch, i)
    tie = batch[B_TIE]
    has_body = load_u16(old + FLAGS) & DELETED == 0
    if has_body and load_u8(body + columns[tie + C_NULL_BYTE]) & columns[tie + C_NULL_MASK]:
        stored = load_i64(body + columns[tie + C_CELL])
    return np.int64(new > stored) - np.int64(new < stored)


@inlined
def count_row(segment, now_alive, was_known, was_alive, result):
    """Count a row that took effect."""
    count_change(segment, ENTITY_COUNT, np.int64(now_alive) - np.int64(was_alive))
    count_change(segment, DELETED_COUNT, np.int64(not now_alive) - np.int64(was_known and not was_alive))
    result[R_APPLIED] += 1
    result[R_CREATED] += np.int64(now_alive and not was_alive)


@helper
def write_rings(segment, row, old, is_alive, columns, batch, i):
    """Write the last values of fields with a history: those of the old row, if that is alive, and row ``i``'s own."""
    begin_rings(segment, row, old, is_alive, batch)
    join_rings(segment, row, columns, batch, i, row_order(columns, batch, i))


@inlined
def row_order(columns, batch, i):
    """What decides between row ``i`` and others of its key: event time, tie-breaker, log position."""
    return event_time(batch, i), row_tie(columns, batch, i), log_position(batch, i)


@helper
def row_tie(columns, batch, i):
    """The tie-breaker of row ``i``."""
    tie = batch[B_TIE]
    if tie < 0 or is_null(columns, tie, i):
        return NO_TIE
    return load_i64(columns[tie + C_VALUES] + 8 * i)


@helper
def join_late(segment, slot, h, columns, batch, i, result):
    """Publish the stored row of a slot again, with what row ``i``, which is older, changes in its last values, if
    anything; False if the segment is out of rows.
    """
    word = load_u64(slot)
    old = row_address(segment, word)
    order = row_order(columns, batch, i)
    is_alive = load_u16(old + FLAGS) & DELETED == 0
    if not (is_alive and joins_rings(segment, old, columns, batch, i, order)):
        return True
    index = take_free_row(segment)
    if index < 0:
        return False
    row = segment[D_ROWS] + index * segment[D_ROW_STRIDE]
    stamp = begin_row(segment, row)
    # Cells and a long key refer to the same bytes of the heap as the old row's.
    copy_bytes(row + EVENT_TIME, old + EVENT_TIME, segment[D_ROW_STRIDE] - EVENT_TIME)
    join_rings(segment, row, columns, batch, i, order)
    publish_row(row, stamp, slot, slot_word(h, index))
    give_back_row(segment, row_index(word))
    result[R_APPLIED] += 1
    return True


@helper
def look_ahead(segment, batch, first, last, hashes):
    """Hash the keys of rows ``first … last-1``, and prefetch the slots and the stored rows that they will meet."""
    k0 = np.uint64(segment[D_SEED_0])
    k1 = np.uint64(segment[D_SEED_1])
    for i in range(first, last):
        h = hash_id(id_address(batch, i), id_bytes(batch, i), k0, k1)
        hashes[i - first] = h
        prefetch(slot_address(segment, home_slot(segment, h), 0))
    for r in range(last - first):
        word = load_u64(slot_address(segment, home_slot(segment, hashes[r]), 0))
        if word != 0:
            prefetch(row_address(segment, word))


@helper
def find_slot(segment, key, count, h):
    """The address of the key's slot, or of the empty slot where it belongs. There always is an empty one."""
    home = home_slot(segment, h)
    distance = 0
    while True:
        distance = probe(segment, home, distance, segment[D_SLOT_COUNT], h)
        slot = slot_address(segment, home, distance)
        word = load_u64(slot)
        if word == 0 or key_equals(segment, row_address(segment, word), key, count):
            return slot
        distance = (distance + 1) % segment[D_SLOT_COUNT]


@inlined
def begin_row(segment, row):
    """Make the row's stamp odd, and return the even one that completes it.

    The fence keeps every store into the row after the odd stamp: a reader that sees any of them sees that too.
    """
    stamp = (load_u64(segment[D_HEADER] + STAMP) + np.uint64(2)) & ~ONE
    store_u64(segment[D_HEADER] + STAMP, stamp)
    store_u64(row, stamp - ONE)
    fence_release()
    return stamp


@inlined
def publish_row(row, stamp, slot, word):
    """Make a row's stamp even, then point its slot to it: from now on readers find it."""
    store_release(row, stamp)
    store_release(slot, word)


@helper
def write_key(segment, row, old, key, count):
    """Write the key into a row: in segment if it is short, else as a reference to the heap, shared with the old row."""
    store_u16(row + KEY_BYTES, count)
    if count <= segment[D_KEY_INLINE]:
        copy_bytes(row + KEY, key, count)
    elif old != 0:
        store_i64(row + LONG_KEY, load_i64(old + LONG_KEY))
    else:
        offset = take_heap(segment, count)
        copy_bytes(segment[D_HEAP] + offset, key, count)
        store_i64(row + LONG_KEY, offset)


@helper
def change_body(segment, row, old, columns, i):
    """Write the body of a live old row (0: one of nulls) with some cells changed; returns the row's flags."""
    body = row + segment[D_BODY_OFFSET]
    if old != 0:
        copy_bytes(body, old + segment[D_BODY_OFFSET], segment[D_BODY_BYTES])
        flags = load_u16(old + FLAGS) & HAS_NULLS
    else:
        zero(body, segment[D_BODY_BYTES])
        flags = HAS_NULLS
    for c in range(0, columns.size, COLUMN_ITEMS):
        byte = body + columns[c + C_NULL_BYTE]
        mask = columns[c + C_NULL_MASK]
        cell = body + columns[c + C_CELL]
        fixed = columns[c + C_KIND] == KIND_FIXED
        if is_null(columns, c, i):
            store_u8(byte, load_u8(byte) & ~mask)
            zero(cell, columns[c + C_ITEM_BYTES] if fixed else CELL_SIZE)
            if fixed:
                flags = flags | HAS_NULLS
        else:
            store_u8(byte, load_u8(byte) | mask)
            if fixed:
                size = columns[c + C_ITEM_BYTES]
                copy_bytes(cell, columns[c + C_VALUES] + i * size, size)
            else:
                write_variable(segment, cell, columns, c, i)
    return flags
