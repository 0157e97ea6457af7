"""The kernel that carries rows over into the next generation: of the same schema, or of one that can follow it.

The source may have a writer: each row is copied as a reader copies it. The target is nobody's yet.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    D_BODY_OFFSET,
    D_CAPACITY,
    D_HEAP,
    D_HEAP_BYTES,
    D_KEY_INLINE,
    D_ROW_STRIDE,
    D_ROWS,
    D_SEED_0,
    D_SEED_1,
    DONE,
    HEAP_FULL,
    R_APPLIED,
    R_NEXT,
    ROWS_FULL,
    X_BIT_COUNT,
    X_BIT_ITEMS,
    X_CELL_COUNT,
    X_COUNT,
    X_FLAGS,
    X_FROM,
    X_HEAD_ITEMS,
    X_SOURCE,
    X_SOURCE_BYTE,
    X_SOURCE_MASK,
    X_SPAN_COUNT,
    X_SPAN_ITEMS,
    X_TARGET,
    X_TARGET_BYTE,
    X_TARGET_MASK,
    X_TO,
)
from quorin.engine.format.hashing import DEFAULT_SEED
from quorin.engine.kernels.compiling import helper, unlocked_kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import (
    array_address,
    copy_bytes,
    load_acquire,
    load_f32,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    prefetch,
    store_f32,
    store_f64,
    store_i64,
    store_u8,
    store_u16,
    store_u32,
)
from quorin.engine.kernels.read import row_address
from quorin.engine.kernels.rows import (
    CELL_BYTES,
    CELL_COUNT,
    CELL_OFFSET,
    DELETED,
    DELETED_COUNT,
    ENTITY_COUNT,
    EVENT_TIME,
    FLAGS,
    FLOAT32,
    FLOAT64,
    HEAP_USED,
    INT32,
    INT64,
    KEY_BYTES,
    POSITION,
    ROWS_FRESH,
    aligned,
    is_unchanged,
    key_address,
    slot_address,
    slot_word,
)
from quorin.engine.kernels.write import begin_row, count_change, counter, find_slot, publish_row, take_heap, write_key

_SEED_0, _SEED_1 = map(np.uint64, DEFAULT_SEED)
_SLOTS_AHEAD = 8
"""So many slots before their turn the rows are fetched: they lie in no order."""


@unlocked_kernel
def copy_rows(segment, successor, plan, forget_before_ns, first, last, shift, kept, forgotten, result):
    """Copy the rows of slots ``first … last-1`` into a new segment as ``plan`` says; deletions older than
    ``forget_before_ns`` are left out.

    ``kept`` says for each partition whether its rows are copied; with one item all are. ``shift`` is that of
    :func:`quorin.engine.format.partition.hash_shift`. Garbage in the heap stays behind. Adds to ``result`` how many
    rows were copied, and keeps in ``forgotten`` for each partition the last position of a deletion that was left out.
    Returns DONE, or ROWS_FULL or HEAP_FULL when the successor is too small.
    """
    k0 = np.uint64(successor[D_SEED_0])
    k1 = np.uint64(successor[D_SEED_1])
    copy = np.empty(segment[D_ROW_STRIDE], np.uint8)
    row = array_address(copy)
    for slot in range(first, last):
        result[R_NEXT] = slot
        if slot + _SLOTS_AHEAD < last:
            fetch_row(segment, slot + _SLOTS_AHEAD)
        if not copy_published_row(segment, slot, row):
            continue
        flags = load_u16(row + FLAGS)
        deleted = flags & DELETED != 0
        is_forgotten = deleted and load_i64(row + EVENT_TIME) < forget_before_ns
        if is_forgotten or len(kept) > 1:
            partition = row_partition(segment, row, shift) if len(forgotten) > 1 else np.int64(0)
            if len(kept) > 1 and not kept[partition]:
                continue
            if is_forgotten:
                forgotten[partition] = max(forgotten[partition], load_i64(row + POSITION))
                continue
        if counter(successor, ENTITY_COUNT) + counter(successor, DELETED_COUNT) >= successor[D_CAPACITY]:
            return ROWS_FULL
        count = load_u16(row + KEY_BYTES)
        key = key_address(segment, row, count)
        body = row + segment[D_BODY_OFFSET]
        heap = aligned(count) if count > successor[D_KEY_INLINE] else 0
        if not deleted:
            heap += carried_heap_bytes(plan, body)
        if counter(successor, HEAP_USED) + heap > successor[D_HEAP_BYTES]:
            return HEAP_FULL
        h = hash_id(key, count, k0, k1)
        address = find_slot(successor, key, count, h)
        index = counter(successor, ROWS_FRESH)
        new = successor[D_ROWS] + index * successor[D_ROW_STRIDE]
        stamp = begin_row(successor, new)
        store_i64(new + EVENT_TIME, load_i64(row + EVENT_TIME))
        store_i64(new + POSITION, load_i64(row + POSITION))
        write_key(successor, new, 0, key, count)
        if deleted:
            store_u16(new + FLAGS, flags)
        else:
            carry_body(segment, successor, plan, body, new + successor[D_BODY_OFFSET])
            store_u16(new + FLAGS, flags | plan[X_FLAGS])
        publish_row(new, stamp, address, slot_word(h, index))
        count_change(successor, ROWS_FRESH, 1)
        count_change(successor, DELETED_COUNT if deleted else ENTITY_COUNT, 1)
        result[R_APPLIED] += 1
    result[R_NEXT] = last
    return DONE


@helper
def row_partition(segment, row, shift):
    """The partition of a row, by the hash of its key."""
    count = load_u16(row + KEY_BYTES)
    return np.int64(hash_id(key_address(segment, row, count), count, _SEED_0, _SEED_1) >> np.uint64(shift))


@helper
def fetch_row(segment, slot):
    """Prefetch the row that a slot points to."""
    word = load_u64(slot_address(segment, slot, 0))
    if word != 0:
        row = row_address(segment, word)
        for line in range(0, segment[D_ROW_STRIDE], fmt.CACHE_LINE):
            prefetch(row + line)


@helper
def copy_published_row(segment, slot, row):
    """Copy the row that a slot points to, one whole version of it, to ``row``; False if the slot is empty."""
    address = slot_address(segment, slot, 0)
    while True:
        word = load_acquire(address)
        if word == 0:
            return False
        stored = row_address(segment, word)
        stamp = load_acquire(stored)
        copy_bytes(row, stored, segment[D_ROW_STRIDE])
        if is_unchanged(stored, stamp, address, word):
            return True


@helper
def carried_heap_bytes(plan, body):
    """Heap bytes that the carried values of a row's heap cells take."""
    total = 0
    at = X_HEAD_ITEMS + X_SPAN_ITEMS * plan[X_SPAN_COUNT] + X_BIT_ITEMS * plan[X_BIT_COUNT]
    for _ in range(plan[X_CELL_COUNT]):
        total += aligned(carried_bytes(plan, at, body + plan[at + X_SOURCE]))
        at += X_SPAN_ITEMS
    return total


@helper
def carried_bytes(plan, at, cell):
    """Bytes that the value of a heap cell takes once it is carried over."""
    if plan[at + X_FROM] == plan[at + X_TO]:
        return load_u32(cell + CELL_BYTES)
    return load_u32(cell + CELL_COUNT) * plan[at + X_COUNT]


@helper
def carry_body(segment, successor, plan, body, new):
    """Write the carried fields into a body of zeros: spans, validity bits, heap cells."""
    at = X_HEAD_ITEMS
    for _ in range(plan[X_SPAN_COUNT]):
        widen(
            new + plan[at + X_TARGET],
            body + plan[at + X_SOURCE],
            plan[at + X_COUNT],
            plan[at + X_FROM],
            plan[at + X_TO],
        )
        at += X_SPAN_ITEMS
    for _ in range(plan[X_BIT_COUNT]):
        if load_u8(body + plan[at + X_SOURCE_BYTE]) & plan[at + X_SOURCE_MASK] != 0:
            byte = new + plan[at + X_TARGET_BYTE]
            store_u8(byte, load_u8(byte) | plan[at + X_TARGET_MASK])
        at += X_BIT_ITEMS
    for _ in range(plan[X_CELL_COUNT]):
        cell = body + plan[at + X_SOURCE]
        size = carried_bytes(plan, at, cell)
        new_cell = new + plan[at + X_TARGET]
        if size > 0:
            offset = take_heap(successor, size)
            value = segment[D_HEAP] + load_i64(cell + CELL_OFFSET)
            as_bytes = plan[at + X_FROM] == plan[at + X_TO]
            count = size if as_bytes else load_u32(cell + CELL_COUNT)
            widen(successor[D_HEAP] + offset, value, count, plan[at + X_FROM], plan[at + X_TO])
            store_i64(new_cell + CELL_OFFSET, offset)
        store_u32(new_cell + CELL_BYTES, size)
        store_u32(new_cell + CELL_COUNT, load_u32(cell + CELL_COUNT))
        at += X_SPAN_ITEMS


@helper
def widen(target, source, count, from_code, to_code):
    """Copy ``count`` bytes if the codes are equal, else ``count`` elements to the wider dtype, each exactly."""
    if from_code == to_code:
        copy_bytes(target, source, count)
    elif from_code == FLOAT32:
        for i in range(count):
            store_f64(target + 8 * i, np.float64(load_f32(source + 4 * i)))
    elif from_code == INT32 and to_code == FLOAT64:
        for i in range(count):
            store_f64(target + 8 * i, np.float64(load_i32(source + 4 * i)))
    elif from_code == INT32:
        for i in range(count):
            store_i64(target + 8 * i, load_i32(source + 4 * i))
    elif to_code == INT32:
        for i in range(count):
            store_u32(target + 4 * i, load_u8(source + i))
    elif to_code == INT64:
        for i in range(count):
            store_i64(target + 8 * i, load_u8(source + i))
    elif to_code == FLOAT32:
        for i in range(count):
            store_f32(target + 4 * i, np.float32(load_u8(source + i)))
    else:
        for i in range(count):
            store_f64(target + 8 * i, np.float64(load_u8(source + i)))
