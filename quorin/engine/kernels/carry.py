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
    D_INDEX,
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
)  # fmt: skip
from quorin.engine.kernels.compiling import helper, inlined, unlocked_kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import (
    array_address,
    copy_bytes,
    fence_acquire,
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
    store_release,
    store_u8,
    store_u16,
    store_u32,
)  # fmt: skip
from quorin.engine.kernels.read import row_address
from quorin.engine.kernels.write import begin_row, count_change, counter, find_slot, take_heap, write_key
from quorin.schema import dtype

_ENTITY_COUNT, _DELETED_COUNT = fmt.header_offset("entity_count"), fmt.header_offset("deleted_count")
_ROWS_FRESH, _HEAP_USED = fmt.header_offset("rows_fresh"), fmt.header_offset("heap_used")
_EVENT_TIME, _POSITION = fmt.row_offset("event_time_ns"), fmt.row_offset("position")
_KEY_BYTES, _FLAGS, _KEY, _LONG_KEY = (
    fmt.row_offset("key_bytes"), fmt.row_offset("flags"), fmt.KEY_OFFSET, fmt.LONG_KEY_OFFSET,
)  # fmt: skip
_CELL_OFFSET, _CELL_BYTES, _CELL_COUNT = (fmt.cell_offset(name) for name in ("offset", "bytes", "count"))
_DELETED = fmt.FLAG_DELETED
_LAST_ALIGNED = fmt.HEAP_ALIGNMENT - 1
_FLOAT32, _FLOAT64, _INT32, _INT64 = int(dtype.float32), int(dtype.float64), int(dtype.int32), int(dtype.int64)

_SLOTS_AHEAD = 8
"""So many slots before their turn the rows are fetched: they lie in no order."""

_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_ONE = np.uint64(1)


@unlocked_kernel
def copy_rows(source, target, plan, forget_before_ns, first, last, result):
    """Copy the rows of slots ``first … last-1`` into a new segment as ``plan`` says; deletions older than
    ``forget_before_ns`` are left out.

    Garbage in the heap stays behind. Adds to ``result`` how many rows there were. Returns DONE, or ROWS_FULL or
    HEAP_FULL when the target is too small.
    """
    k0 = np.uint64(target[D_SEED_0])
    k1 = np.uint64(target[D_SEED_1])
    copy = np.empty(source[D_ROW_STRIDE], np.uint8)
    row = array_address(copy)
    for slot in range(first, last):
        result[R_NEXT] = slot
        if slot + _SLOTS_AHEAD < last:
            fetch_row(source, slot + _SLOTS_AHEAD)
        if not copy_published_row(source, slot, row):
            continue
        flags = load_u16(row + _FLAGS)
        deleted = flags & _DELETED != 0
        if deleted and load_i64(row + _EVENT_TIME) < forget_before_ns:
            continue
        if counter(target, _ENTITY_COUNT) + counter(target, _DELETED_COUNT) >= target[D_CAPACITY]:
            return ROWS_FULL
        count = load_u16(row + _KEY_BYTES)
        key = row + _KEY
        if count > source[D_KEY_INLINE]:
            key = source[D_HEAP] + load_i64(row + _LONG_KEY)
        body = row + source[D_BODY_OFFSET]
        heap = (count + _LAST_ALIGNED) & ~_LAST_ALIGNED if count > target[D_KEY_INLINE] else 0
        if not deleted:
            heap += heap_needed(plan, body)
        if counter(target, _HEAP_USED) + heap > target[D_HEAP_BYTES]:
            return HEAP_FULL
        h = hash_id(key, count, k0, k1)
        slot_address = find_slot(target, key, count, h)
        index = counter(target, _ROWS_FRESH)
        new = target[D_ROWS] + index * target[D_ROW_STRIDE]
        stamp = begin_row(target, new)
        store_i64(new + _EVENT_TIME, load_i64(row + _EVENT_TIME))
        store_i64(new + _POSITION, load_i64(row + _POSITION))
        write_key(target, new, 0, key, count)
        if deleted:
            store_u16(new + _FLAGS, flags)
        else:
            carry_body(source, target, plan, body, new + target[D_BODY_OFFSET])
            store_u16(new + _FLAGS, flags | plan[X_FLAGS])
        store_release(new, stamp)
        store_release(slot_address, (h & _LOW_32) << _SHIFT_32 | np.uint64(index + 1))
        count_change(target, _ROWS_FRESH, 1)
        count_change(target, _DELETED_COUNT if deleted else _ENTITY_COUNT, 1)
        result[R_APPLIED] += 1
    result[R_NEXT] = last
    return DONE


@inlined
def fetch_row(source, slot):
    """Ask for the row that a slot points to."""
    word = load_u64(source[D_INDEX] + 8 * slot)
    if word != 0:
        row = row_address(source, word)
        for line in range(0, source[D_ROW_STRIDE], fmt.CACHE_LINE):
            prefetch(row + line)


@helper
def copy_published_row(source, slot, row):
    """Copy the row that a slot points to, one whole version of it, to ``row``; False if the slot is empty."""
    while True:
        word = load_acquire(source[D_INDEX] + 8 * slot)
        if word == 0:
            return False
        old = row_address(source, word)
        stamp = load_acquire(old)
        copy_bytes(row, old, source[D_ROW_STRIDE])
        fence_acquire()
        unchanged = load_u64(old) == stamp and load_u64(source[D_INDEX] + 8 * slot) == word
        if unchanged and stamp & _ONE == 0:
            return True


@helper
def heap_needed(plan, body):
    """Heap bytes that the carried values of a row's heap cells take."""
    total = 0
    at = X_HEAD_ITEMS + X_SPAN_ITEMS * plan[X_SPAN_COUNT] + X_BIT_ITEMS * plan[X_BIT_COUNT]
    for _ in range(plan[X_CELL_COUNT]):
        total += (carried_bytes(plan, at, body + plan[at + X_SOURCE]) + _LAST_ALIGNED) & ~_LAST_ALIGNED
        at += X_SPAN_ITEMS
    return total


@inlined
def carried_bytes(plan, at, cell):
    """Bytes that the value of a heap cell takes once it is carried over."""
    if plan[at + X_FROM] == plan[at + X_TO]:
        return load_u32(cell + _CELL_BYTES)
    return load_u32(cell + _CELL_COUNT) * plan[at + X_COUNT]


@helper
def carry_body(source, target, plan, body, new):
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
            place = new + plan[at + X_TARGET_BYTE]
            store_u8(place, load_u8(place) | plan[at + X_TARGET_MASK])
        at += X_BIT_ITEMS
    for _ in range(plan[X_CELL_COUNT]):
        cell = body + plan[at + X_SOURCE]
        size = carried_bytes(plan, at, cell)
        place = new + plan[at + X_TARGET]
        if size > 0:
            offset = take_heap(target, size)
            old = source[D_HEAP] + load_i64(cell + _CELL_OFFSET)
            as_bytes = plan[at + X_FROM] == plan[at + X_TO]
            count = size if as_bytes else load_u32(cell + _CELL_COUNT)
            widen(target[D_HEAP] + offset, old, count, plan[at + X_FROM], plan[at + X_TO])
            store_i64(place + _CELL_OFFSET, offset)
        store_u32(place + _CELL_BYTES, size)
        store_u32(place + _CELL_COUNT, load_u32(cell + _CELL_COUNT))
        at += X_SPAN_ITEMS


@helper
def widen(target, source, count, from_code, to_code):
    """Copy ``count`` bytes if the codes are equal, else ``count`` elements to the wider dtype, each exactly."""
    if from_code == to_code:
        copy_bytes(target, source, count)
    elif from_code == _FLOAT32:
        for i in range(count):
            store_f64(target + 8 * i, np.float64(load_f32(source + 4 * i)))
    elif from_code == _INT32 and to_code == _FLOAT64:
        for i in range(count):
            store_f64(target + 8 * i, np.float64(load_i32(source + 4 * i)))
    elif from_code == _INT32:
        for i in range(count):
            store_i64(target + 8 * i, load_i32(source + 4 * i))
    elif to_code == _INT32:
        for i in range(count):
            store_u32(target + 4 * i, load_u8(source + i))
    elif to_code == _INT64:
        for i in range(count):
            store_i64(target + 8 * i, load_u8(source + i))
    elif to_code == _FLOAT32:
        for i in range(count):
            store_f32(target + 4 * i, np.float32(load_u8(source + i)))
    else:
        for i in range(count):
            store_f64(target + 8 * i, np.float64(load_u8(source + i)))
