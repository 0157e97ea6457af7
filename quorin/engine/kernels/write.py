"""The write kernels: apply rows, repair the books after a writer's death.

They follow the commit rule of :mod:`quorin.engine.format.segment` from the writer's side, and may run in one process
at a time: the one that holds the writer lease.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    C_CELL,
    C_INNER_OFFSET_BYTES,
    C_INNER_OFFSETS,
    C_ITEM_BYTES,
    C_KIND,
    C_NULL_BYTE,
    C_NULL_MASK,
    C_OFFSET_BYTES,
    C_OFFSETS,
    C_VALUES,
    COLUMN_ITEMS,
    D_BODY_BYTES,
    D_BODY_OFFSET,
    D_CAPACITY,
    D_FREE,
    D_HEADER,
    D_HEAP,
    D_HEAP_BYTES,
    D_INDEX,
    D_KEY_INLINE,
    D_ROW_LIMIT,
    D_ROW_STRIDE,
    D_ROWS,
    D_SEED_0,
    D_SEED_1,
    D_SLOT_COUNT,
    DELETE,
    DONE,
    HEAP_FULL,
    KIND_FIXED,
    KIND_VARIABLE,
    PARTIAL,
    R_APPLIED,
    R_CREATED,
    R_NEXT,
    ROWS_FULL,
    UPSERT,
)  # fmt: skip
from quorin.engine.kernels.compiling import helper, inlined, unlocked_kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import (
    array_address,
    copy_bytes,
    fence_release,
    load_acquire,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    prefetch,
    scale,
    store_i64,
    store_release,
    store_u8,
    store_u16,
    store_u32,
    store_u64,
)  # fmt: skip
from quorin.engine.kernels.read import key_equals, load_offset, row_address
from quorin.engine.kernels.staging import is_null, stage_rows, zero

REUSE_DELAY = 32
"""While fresh rows remain, this many freed ones rest before they are written again, so that slow readers rarely have to
read twice."""

_BLOCK = 128
"""So many rows of a batch are looked up ahead, and prepared: enough to hide the latency of memory."""
_STAGED_BYTES = 128 << 10
"""Of wide rows so many bytes at most, which the cache holds beside the columns they come from."""

_ENTITY_COUNT, _DELETED_COUNT = fmt.header_offset("entity_count"), fmt.header_offset("deleted_count")
_ROWS_FRESH, _RING_HEAD, _RING_TAIL = (fmt.header_offset(name) for name in ("rows_fresh", "ring_head", "ring_tail"))
_HEAP_USED, _HEAP_GARBAGE = fmt.header_offset("heap_used"), fmt.header_offset("heap_garbage")
_STAMP = fmt.header_offset("stamp")
_EVENT_TIME, _POSITION = fmt.row_offset("event_time_ns"), fmt.row_offset("position")
_KEY_BYTES, _FLAGS, _KEY, _LONG_KEY = (
    fmt.row_offset("key_bytes"), fmt.row_offset("flags"), fmt.KEY_OFFSET, fmt.LONG_KEY_OFFSET,
)  # fmt: skip
_DELETED, _HAS_NULLS = fmt.FLAG_DELETED, fmt.FLAG_HAS_NULLS
_CELL_OFFSET, _CELL_BYTES, _CELL_COUNT = (fmt.cell_offset(part) for part in ("offset", "bytes", "count"))
_CELL_SIZE = fmt.VAR_CELL.itemsize
_LAST_ALIGNED = fmt.HEAP_ALIGNMENT - 1

_UNKNOWN = -(2**63)
"""What a null tie-breaker, or that of a deletion, counts as."""

_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_ONE = np.uint64(1)


@unlocked_kernel
def apply_rows(
    place, columns, tie, mode, offsets, offset_bytes, ids, event_times, positions, position_step, first, last, result
):
    """Apply rows ``first … last-1`` of a batch, each published on its own, in order.

    A row older in event time than the stored one is passed over; of one time, the one with the lower tie-breaker; then
    the one with the lower log position. ``tie`` is where the tie-breaker's column begins in ``columns``, -1 without
    one. Log positions stand ``position_step`` bytes apart; 0 means one for all rows. Adds to ``result`` how many took
    effect and how many entities came into being, and sets in it the first row that was not looked at: the batch is
    DONE, or the segment is out of rows (ROWS_FULL) or heap (HEAP_FULL) and must grow first.
    """
    size = last - first
    block = max(1, min(_BLOCK, size, _STAGED_BYTES // place[D_BODY_BYTES]))
    hashes = np.empty(block, np.uint64)
    flags = np.empty(block, np.uint8)
    staged = np.empty(block * place[D_BODY_BYTES] if mode == UPSERT else 0, np.uint8)
    heap_columns = variable_columns(columns, mode)
    for i in range(first, last):
        result[R_NEXT] = i
        r = (i - first) % block
        if r == 0:
            end = min(i + block, last)
            look_ahead(place, offsets, offset_bytes, ids, i, end, hashes)
            if mode == UPSERT:
                stage_rows(columns, place[D_BODY_BYTES], i, end, array_address(staged), flags)
        start = load_offset(offsets, offset_bytes, i)
        count = load_offset(offsets, offset_bytes, i + 1) - start
        key = ids + start
        h = hashes[r]
        slot_address = find_slot(place, key, count, h)
        word = load_u64(slot_address)
        event_time = load_i64(event_times + 8 * i)
        position = load_i64(positions + position_step * i)
        old = np.int64(0)
        alive = False
        if word != 0:
            old = row_address(place, word)
            stored = load_i64(old + _EVENT_TIME)
            if event_time < stored:
                continue
            if event_time == stored:
                order = 0 if tie < 0 else tie_order(place, old, columns, tie, i)
                if order < 0 or (order == 0 and position < load_i64(old + _POSITION)):
                    continue
            alive = load_u16(old + _FLAGS) & _DELETED == 0
        elif counter(place, _ENTITY_COUNT) + counter(place, _DELETED_COUNT) >= place[D_CAPACITY]:
            return ROWS_FULL
        long_key = count if word == 0 and count > place[D_KEY_INLINE] else 0
        heap = heap_needed(columns, heap_columns, i) + ((long_key + _LAST_ALIGNED) & ~_LAST_ALIGNED)
        if counter(place, _HEAP_USED) + heap > place[D_HEAP_BYTES]:
            return HEAP_FULL
        index = take_free_row(place)
        if index < 0:
            return ROWS_FULL

        row = place[D_ROWS] + index * place[D_ROW_STRIDE]
        stamp = begin_row(place, row)
        store_i64(row + _EVENT_TIME, event_time)
        store_i64(row + _POSITION, position)
        write_key(place, row, old, key, count)
        if mode == UPSERT:
            copy_bytes(row + place[D_BODY_OFFSET], array_address(staged) + r * place[D_BODY_BYTES], place[D_BODY_BYTES])
            write_variables(place, row, columns, heap_columns, i)
            store_u16(row + _FLAGS, flags[r])
        elif mode == PARTIAL:
            store_u16(row + _FLAGS, change_body(place, row, old if alive else 0, columns, i))
        else:
            store_u16(row + _FLAGS, _DELETED)
        store_release(row, stamp)
        store_release(slot_address, (h & _LOW_32) << _SHIFT_32 | np.uint64(index + 1))

        now_alive = mode != DELETE
        count_change(place, _ENTITY_COUNT, np.int64(now_alive) - np.int64(alive))
        count_change(place, _DELETED_COUNT, np.int64(not now_alive) - np.int64(word != 0 and not alive))
        result[R_APPLIED] += 1
        result[R_CREATED] += np.int64(now_alive and not alive)
        if word != 0:
            if alive:
                count_change(place, _HEAP_GARBAGE, heap_replaced(place, old, columns, heap_columns))
            give_back_row(place, np.int64((word & _LOW_32) - _ONE))
    result[R_NEXT] = last
    return DONE


@helper
def tie_order(place, old, columns, tie, i):
    """How row ``i`` stands to the stored row by the tie-breaker: below 0 before it, above 0 behind it."""
    body, stored, new = old + place[D_BODY_OFFSET], _UNKNOWN, _UNKNOWN
    has_body = load_u16(old + _FLAGS) & _DELETED == 0
    if has_body and load_u8(body + columns[tie + C_NULL_BYTE]) & columns[tie + C_NULL_MASK]:
        stored = load_i64(body + columns[tie + C_CELL])
    if not is_null(columns, tie, i):
        new = load_i64(columns[tie + C_VALUES] + 8 * i)
    return np.int64(new > stored) - np.int64(new < stored)


@inlined
def counter(place, offset):
    """A header counter."""
    return load_i64(place[D_HEADER] + offset)


@inlined
def count_change(place, offset, change):
    """Add to a header counter."""
    store_i64(place[D_HEADER] + offset, counter(place, offset) + change)


@helper
def look_ahead(place, offsets, offset_bytes, ids, first, last, hashes):
    """Hash the keys of rows ``first … last-1``, and fetch the slots and the stored rows that they will meet."""
    k0 = np.uint64(place[D_SEED_0])
    k1 = np.uint64(place[D_SEED_1])
    for i in range(first, last):
        start = load_offset(offsets, offset_bytes, i)
        h = hash_id(ids + start, load_offset(offsets, offset_bytes, i + 1) - start, k0, k1)
        hashes[i - first] = h
        prefetch(place[D_INDEX] + 8 * scale(h, place[D_SLOT_COUNT]))
    for r in range(last - first):
        word = load_u64(place[D_INDEX] + 8 * scale(hashes[r], place[D_SLOT_COUNT]))
        if word != 0:
            prefetch(row_address(place, word))


@helper
def variable_columns(columns, mode):
    """Where in ``columns`` the variable-size ones begin; none that matter for deletions."""
    found = np.empty(columns.size // COLUMN_ITEMS, np.int64)
    count = 0
    for c in range(0, columns.size, COLUMN_ITEMS):
        if columns[c + C_KIND] != KIND_FIXED and mode != DELETE:
            found[count] = c
            count += 1
    return found[:count]


@helper
def find_slot(place, key, count, h):
    """Address of the key's slot, or of the empty slot where it belongs. There always is an empty one."""
    slot = scale(h, place[D_SLOT_COUNT])
    tag = h & _LOW_32
    while True:
        slot_address = place[D_INDEX] + 8 * slot
        word = load_u64(slot_address)
        if word == 0:
            return slot_address
        if word >> _SHIFT_32 == tag and key_equals(place, row_address(place, word), key, count):
            return slot_address
        slot += 1
        if slot == place[D_SLOT_COUNT]:
            slot = 0


@helper
def take_free_row(place):
    """The index of a row that no slot points to, -1 if there is none."""
    head = counter(place, _RING_HEAD)
    resting = counter(place, _RING_TAIL) - head
    fresh = counter(place, _ROWS_FRESH)
    if fresh < place[D_ROW_LIMIT] and resting <= REUSE_DELAY:
        count_change(place, _ROWS_FRESH, 1)
        return fresh
    if resting == 0:
        return -1
    count_change(place, _RING_HEAD, 1)
    return load_u32(place[D_FREE] + 4 * (head % place[D_ROW_LIMIT]))


@helper
def give_back_row(place, index):
    """Put a row that no slot points to any more at the end of the ring of free rows."""
    tail = counter(place, _RING_TAIL)
    store_u32(place[D_FREE] + 4 * (tail % place[D_ROW_LIMIT]), index)
    count_change(place, _RING_TAIL, 1)


@inlined
def begin_row(place, row):
    """Make the row's stamp odd, and return the even one that completes it.

    The fence keeps every store into the row after the odd stamp: a reader that sees any of them sees that too.
    """
    stamp = (load_u64(place[D_HEADER] + _STAMP) + np.uint64(2)) & ~_ONE
    store_u64(place[D_HEADER] + _STAMP, stamp)
    store_u64(row, stamp - _ONE)
    fence_release()
    return stamp


@inlined
def take_heap(place, size):
    """Room for ``size`` bytes in the heap, as an offset. The caller has made sure that there is as much."""
    offset = counter(place, _HEAP_USED)
    count_change(place, _HEAP_USED, (size + _LAST_ALIGNED) & ~_LAST_ALIGNED)
    return offset


@helper
def write_key(place, row, old, key, count):
    """Write the key into a row: in place if it is short, else as a reference to the heap, shared with the old row."""
    store_u16(row + _KEY_BYTES, count)
    if count <= place[D_KEY_INLINE]:
        copy_bytes(row + _KEY, key, count)
    elif old != 0:
        store_i64(row + _LONG_KEY, load_i64(old + _LONG_KEY))
    else:
        offset = take_heap(place, count)
        copy_bytes(place[D_HEAP] + offset, key, count)
        store_i64(row + _LONG_KEY, offset)


@helper
def write_variables(place, row, columns, heap_columns, i):
    """Write the values of a staged row that stand in the heap."""
    for c in heap_columns:
        if not is_null(columns, c, i):
            write_variable(place, row + place[D_BODY_OFFSET] + columns[c + C_CELL], columns, c, i)


@helper
def change_body(place, row, old, columns, i):
    """Write the body of a live old row (0: one of nulls) with some cells changed; returns the row's flags."""
    body = row + place[D_BODY_OFFSET]
    if old != 0:
        copy_bytes(body, old + place[D_BODY_OFFSET], place[D_BODY_BYTES])
        flags = load_u16(old + _FLAGS) & _HAS_NULLS
    else:
        zero(body, place[D_BODY_BYTES])
        flags = _HAS_NULLS
    for c in range(0, columns.size, COLUMN_ITEMS):
        mask_place = body + columns[c + C_NULL_BYTE]
        mask = columns[c + C_NULL_MASK]
        cell = body + columns[c + C_CELL]
        fixed = columns[c + C_KIND] == KIND_FIXED
        if is_null(columns, c, i):
            store_u8(mask_place, load_u8(mask_place) & ~mask)
            zero(cell, columns[c + C_ITEM_BYTES] if fixed else _CELL_SIZE)
            if fixed:
                flags = flags | _HAS_NULLS
        else:
            store_u8(mask_place, load_u8(mask_place) | mask)
            if fixed:
                size = columns[c + C_ITEM_BYTES]
                copy_bytes(cell, columns[c + C_VALUES] + i * size, size)
            else:
                write_variable(place, cell, columns, c, i)
    return flags


@helper
def variable_bytes(columns, c, i):
    """Heap bytes that value ``i`` of a variable-size column takes, before alignment."""
    first = load_offset(columns[c + C_OFFSETS], columns[c + C_OFFSET_BYTES], i)
    last = load_offset(columns[c + C_OFFSETS], columns[c + C_OFFSET_BYTES], i + 1)
    if columns[c + C_KIND] == KIND_VARIABLE:
        return (last - first) * columns[c + C_ITEM_BYTES]
    inner, width = columns[c + C_INNER_OFFSETS], columns[c + C_INNER_OFFSET_BYTES]
    return 4 * (last - first) + load_offset(inner, width, last) - load_offset(inner, width, first)


@helper
def write_variable(place, cell, columns, c, i):
    """Write value ``i`` of a variable-size column into the heap, and point the cell to it."""
    size = variable_bytes(columns, c, i)
    first = load_offset(columns[c + C_OFFSETS], columns[c + C_OFFSET_BYTES], i)
    last = load_offset(columns[c + C_OFFSETS], columns[c + C_OFFSET_BYTES], i + 1)
    offset = take_heap(place, size)
    target = place[D_HEAP] + offset
    if columns[c + C_KIND] == KIND_VARIABLE:
        copy_bytes(target, columns[c + C_VALUES] + first * columns[c + C_ITEM_BYTES], size)
    else:
        inner, width = columns[c + C_INNER_OFFSETS], columns[c + C_INNER_OFFSET_BYTES]
        base = load_offset(inner, width, first)
        for item in range(last - first):
            store_u32(target + 4 * item, load_offset(inner, width, first + item + 1) - base)
        copy_bytes(target + 4 * (last - first), columns[c + C_VALUES] + base, size - 4 * (last - first))
    store_i64(cell + _CELL_OFFSET, offset)
    store_u32(cell + _CELL_BYTES, size)
    store_u32(cell + _CELL_COUNT, last - first)


@helper
def heap_needed(columns, heap_columns, i):
    """Heap bytes that row ``i`` of the batch takes."""
    total = 0
    for c in heap_columns:
        if not is_null(columns, c, i):
            total += (variable_bytes(columns, c, i) + _LAST_ALIGNED) & ~_LAST_ALIGNED
    return total


@helper
def heap_replaced(place, old, columns, heap_columns):
    """Heap bytes that the replaced row alone referred to: all variable cells that the batch wrote anew."""
    total = 0
    body = old + place[D_BODY_OFFSET]
    for c in heap_columns:
        total += (load_u32(body + columns[c + C_CELL] + _CELL_BYTES) + _LAST_ALIGNED) & ~_LAST_ALIGNED
    return total


@unlocked_kernel
def recover(place, used):
    """Rebuild what a writer that died may have left half-said: the counts and the list of free rows.

    ``used`` is scratch, one zero byte a row. The index says what is true: a row is in use if a slot points to it.
    Returns the number of entities, -1 if a slot points nowhere.
    """
    live = 0
    deleted = 0
    fresh = 0
    for slot in range(place[D_SLOT_COUNT]):
        word = load_acquire(place[D_INDEX] + 8 * slot)
        if word == 0:
            continue
        index = np.int64((word & _LOW_32) - _ONE)
        if index >= place[D_ROW_LIMIT]:
            return -1
        used[index] = 1
        fresh = max(fresh, index + 1)
        if load_u16(row_address(place, word) + _FLAGS) & _DELETED:
            deleted += 1
        else:
            live += 1
    free = 0
    for index in range(fresh):
        if used[index] == 0:
            store_u32(place[D_FREE] + 4 * free, index)
            free += 1
    header = place[D_HEADER]
    store_i64(header + _ENTITY_COUNT, live)
    store_i64(header + _DELETED_COUNT, deleted)
    store_i64(header + _ROWS_FRESH, fresh)
    store_i64(header + _RING_HEAD, 0)
    store_i64(header + _RING_TAIL, free)
    store_u64(header + _STAMP, load_u64(header + _STAMP) + np.uint64(2))
    return live
