"""The kernels that look at many rows at once: how new and how old the events of a segment are, for people and
dashboards, and about how many entities a history has.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import D_INDEX, D_ROW_LIMIT, D_ROW_STRIDE, D_ROWS
from quorin.engine.kernels.compiling import kernel, unlocked_kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import load_acquire, load_i64, load_u16
from quorin.engine.kernels.read import load_offset

_EVENT_TIME, _FLAGS = fmt.row_offset("event_time_ns"), fmt.row_offset("flags")
_LOW_32 = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)


@unlocked_kernel
def event_times(descriptor, first, last, result):
    """Widen ``result``, (oldest, newest) event time in ns, by the live rows of slots ``first … last-1``.

    Rows may be replaced meanwhile: then it is the time of the older or of the newer row, or of the row that took its
    place in memory. Each was true of some row a moment ago, which is all that is promised.
    """
    for slot in range(first, last):
        word = load_acquire(descriptor[D_INDEX] + 8 * slot)
        number = np.int64(word & _LOW_32)
        if word == 0 or number > descriptor[D_ROW_LIMIT]:
            continue
        row = descriptor[D_ROWS] + np.int64((word & _LOW_32) - _ONE) * descriptor[D_ROW_STRIDE]
        if load_u16(row + _FLAGS) & fmt.FLAG_DELETED != 0:
            continue
        time = load_i64(row + _EVENT_TIME)
        result[0] = min(result[0], time)
        result[1] = max(result[1], time)


@unlocked_kernel
def mark_ids(offsets, ids, rows, bitmap):
    """Set the bit (a byte of ``bitmap``, whose size is a power of two) that each id's hash chooses; gives the longest
    id's bytes. ``offsets`` are int32, as Arrow has them.
    """
    longest = np.int64(0)
    mask = np.uint64(bitmap.size - 1)
    for i in range(rows):
        start = load_offset(offsets, 4, i)
        count = load_offset(offsets, 4, i + 1) - start
        bitmap[np.int64(hash_id(ids + start, count, _ONE, _ONE) & mask)] = 1
        longest = max(longest, count)
    return longest


@kernel
def longest_id(offsets, offset_bytes, rows):
    """The bytes of the longest of so many ids, 0 of none."""
    longest = np.int64(0)
    for i in range(rows):
        longest = max(longest, load_offset(offsets, offset_bytes, i + 1) - load_offset(offsets, offset_bytes, i))
    return longest
