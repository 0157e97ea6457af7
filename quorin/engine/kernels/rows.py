"""What all kernels know of a segment: where the parts of a row are, and the steps that reads and writes have in common.

``segment`` is everywhere the flat array that describes an attached segment: the descriptor of
:mod:`quorin.engine.format.abi`, which a read plan or the items of a search may follow.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    D_HEADER,
    D_HEAP,
    D_HEAP_BYTES,
    D_INDEX,
    D_KEY_INLINE,
    D_ROW_LIMIT,
    D_ROW_STRIDE,
    D_ROWS,
    D_SLOT_COUNT,
)
from quorin.engine.kernels.compiling import helper, inlined
from quorin.engine.kernels.memory import (
    fence_acquire,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    scale,
    store_i64,
)
from quorin.schema import dtype

ENTITY_COUNT, DELETED_COUNT = fmt.header_offset("entity_count"), fmt.header_offset("deleted_count")
ROWS_FRESH, RING_HEAD, RING_TAIL = (fmt.header_offset(name) for name in ("rows_fresh", "ring_head", "ring_tail"))
HEAP_USED, HEAP_GARBAGE = fmt.header_offset("heap_used"), fmt.header_offset("heap_garbage")
STAMP, SUCCESSOR = fmt.header_offset("stamp"), fmt.header_offset("successor")
"""Offsets in the header of a segment."""

EVENT_TIME, POSITION = fmt.row_offset("event_time_ns"), fmt.row_offset("position")
KEY_BYTES, FLAGS = fmt.row_offset("key_bytes"), fmt.row_offset("flags")
KEY, LONG_KEY = fmt.KEY_OFFSET, fmt.LONG_KEY_OFFSET
"""Offsets in a row."""
DELETED, HAS_NULLS = fmt.FLAG_DELETED, fmt.FLAG_HAS_NULLS

CELL_OFFSET, CELL_BYTES, CELL_COUNT = (fmt.cell_offset(part) for part in ("offset", "bytes", "count"))
CELL_SIZE = fmt.VAR_CELL.itemsize

FLOAT32, FLOAT64, INT32, INT64 = int(dtype.float32), int(dtype.float64), int(dtype.int32), int(dtype.int64)

LOW_32 = np.uint64(0xFFFFFFFF)
SHIFT_32 = np.uint64(32)
ONE = np.uint64(1)

MAX_ATTEMPTS = 1 << 16
"""A read that finds its row replaced this often in succession returns to Python, which may handle a signal and then
calls again."""

_LAST_ALIGNED = fmt.HEAP_ALIGNMENT - 1


@inlined
def counter(segment, offset):
    """A header counter."""
    return load_i64(segment[D_HEADER] + offset)


@inlined
def count_change(segment, offset, change):
    """Add to a header counter."""
    store_i64(segment[D_HEADER] + offset, counter(segment, offset) + change)


@inlined
def aligned(size):
    """The bytes that ``size`` bytes take in the heap."""
    return (size + _LAST_ALIGNED) & ~_LAST_ALIGNED


@inlined
def slot_address(segment, home, distance):
    """The address of the slot ``distance`` behind slot ``home``; the first slot follows the last."""
    slot = home + distance
    slot -= segment[D_SLOT_COUNT] * (slot >= segment[D_SLOT_COUNT])
    return segment[D_INDEX] + 8 * slot


@inlined
def home_slot(segment, h):
    """The slot where the probe for a hash begins."""
    return scale(h, segment[D_SLOT_COUNT])


@helper
def probe(segment, home, distance, limit, h):
    """The distance from ``home`` of the next slot that is empty or has the tag of hash ``h``, ``distance`` included;
    ``limit`` if there is none before.
    """
    tag = h & LOW_32
    while distance < limit:
        word = load_u64(slot_address(segment, home, distance))
        if word == 0 or word >> SHIFT_32 == tag:
            break
        distance += 1
    return distance


@inlined
def slot_word(h, row_index):
    """The word of a slot: the tag of a hash, and a row."""
    return (h & LOW_32) << SHIFT_32 | np.uint64(row_index + 1)


@inlined
def row_index(word):
    """The index of the row that a slot word names."""
    return np.int64((word & LOW_32) - ONE)


@inlined
def is_row(segment, word):
    """Whether the row that a slot word names is inside the segment."""
    return np.int64(word & LOW_32) <= segment[D_ROW_LIMIT]


@inlined
def row_address(segment, word):
    """The address of the row that a slot word names."""
    return segment[D_ROWS] + row_index(word) * segment[D_ROW_STRIDE]


@inlined
def is_unchanged(row, stamp, slot, word):
    """Whether everything that was read of a row is one version of it: the last step of a read.

    The order of loads is the argument: slot word (acquire), stamp (acquire), the row, fence (acquire), stamp, slot
    word. An even stamp that is the same before and after means that the row was not written in between; the same word
    in the slot at address ``slot`` means that the row belongs to the slot's key.
    """
    fence_acquire()
    return load_u64(row) == stamp and stamp & ONE == 0 and load_u64(slot) == word


@helper
def key_address(segment, row, count):
    """The address of a row's key of ``count`` bytes; -1 if its offset is outside the heap, as it may be while the row
    is written.
    """
    if count <= segment[D_KEY_INLINE]:
        return row + KEY
    offset = load_i64(row + LONG_KEY)
    if offset < 0 or offset > segment[D_HEAP_BYTES] - count:
        return -1
    return segment[D_HEAP] + offset


@helper
def key_equals(segment, row, key, count):
    """Whether the row's key is the ``count`` bytes at ``key``. The row may be changing."""
    if load_u16(row + KEY_BYTES) != count:
        return False
    stored = key_address(segment, row, count)
    if stored < 0:
        return False
    i = 0
    while i + 8 <= count:
        if load_u64(stored + i) != load_u64(key + i):
            return False
        i += 8
    if i + 4 <= count:
        if load_u32(stored + i) != load_u32(key + i):
            return False
        i += 4
    while i < count:
        if load_u8(stored + i) != load_u8(key + i):
            return False
        i += 1
    return True
