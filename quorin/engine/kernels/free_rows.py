"""The free rows of a segment, and the kernel that rebuilds them and the counts after a writer's death."""

from __future__ import annotations

import numpy as np

from quorin.engine.format.abi import D_FREE, D_HEADER, D_ROW_LIMIT, D_SLOT_COUNT
from quorin.engine.kernels.compiling import helper, unlocked_kernel
from quorin.engine.kernels.memory import load_acquire, load_u16, load_u32, load_u64, store_i64, store_u32, store_u64
from quorin.engine.kernels.rows import (
    DELETED,
    DELETED_COUNT,
    ENTITY_COUNT,
    FLAGS,
    RING_HEAD,
    RING_TAIL,
    ROWS_FRESH,
    STAMP,
    count_change,
    counter,
    is_row,
    row_address,
    row_index,
    slot_address,
)

REUSE_DELAY = 32
"""While fresh rows remain, this many freed ones rest before they are written again, so that slow readers rarely have to
read twice."""


@helper
def take_free_row(segment):
    """The index of a row that no slot points to, -1 if there is none."""
    head = counter(segment, RING_HEAD)
    resting = counter(segment, RING_TAIL) - head
    fresh = counter(segment, ROWS_FRESH)
    if fresh < segment[D_ROW_LIMIT] and resting <= REUSE_DELAY:
        count_change(segment, ROWS_FRESH, 1)
        return fresh
    if resting == 0:
        return -1
    count_change(segment, RING_HEAD, 1)
    return load_u32(segment[D_FREE] + 4 * (head % segment[D_ROW_LIMIT]))


@helper
def give_back_row(segment, index):
    """Put a row that no slot points to any more at the end of the ring of free rows."""
    tail = counter(segment, RING_TAIL)
    store_u32(segment[D_FREE] + 4 * (tail % segment[D_ROW_LIMIT]), index)
    count_change(segment, RING_TAIL, 1)


@unlocked_kernel
def recover(segment, used):
    """Rebuild what a writer that died may have left incomplete: the counts and the ring of free rows.

    ``used`` is scratch, one zero byte a row. The index is the truth: a row is in use if a slot points to it. Returns
    the number of entities, -1 if a slot points outside the segment.
    """
    live = 0
    deleted = 0
    fresh = 0
    for slot in range(segment[D_SLOT_COUNT]):
        word = load_acquire(slot_address(segment, slot, 0))
        if word == 0:
            continue
        if not is_row(segment, word):
            return -1
        index = row_index(word)
        used[index] = 1
        fresh = max(fresh, index + 1)
        if load_u16(row_address(segment, word) + FLAGS) & DELETED:
            deleted += 1
        else:
            live += 1
    free = 0
    for index in range(fresh):
        if used[index] == 0:
            store_u32(segment[D_FREE] + 4 * free, index)
            free += 1
    header = segment[D_HEADER]
    store_i64(header + ENTITY_COUNT, live)
    store_i64(header + DELETED_COUNT, deleted)
    store_i64(header + ROWS_FRESH, fresh)
    store_i64(header + RING_HEAD, 0)
    store_i64(header + RING_TAIL, free)
    store_u64(header + STAMP, load_u64(header + STAMP) + np.uint64(2))
    return live
