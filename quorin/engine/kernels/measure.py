"""The kernels that look at many rows at once: how new and how old the events of a segment are, for people and
dashboards, and about how many entities a history has.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format.abi import D_INDEX
from quorin.engine.kernels.compiling import kernel, unlocked_kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import load_acquire, load_i64, load_u16
from quorin.engine.kernels.read import load_offset
from quorin.engine.kernels.rows import DELETED, EVENT_TIME, FLAGS, ONE, is_row, row_address


@unlocked_kernel
def event_times(segment, first, last, result):
    """Widen ``result``, (oldest, newest) event time in ns, by the live rows of slots ``first … last-1``.

    A row that is replaced meanwhile counts with its old time, its new one, or that of the row that reuses its memory.
    Each was the time of some row a moment ago, and no more is promised.
    """
    for slot in range(first, last):
        word = load_acquire(segment[D_INDEX] + 8 * slot)
        if word == 0 or not is_row(segment, word):
            continue
        row = row_address(segment, word)
        if load_u16(row + FLAGS) & DELETED != 0:
            continue
        time = load_i64(row + EVENT_TIME)
        result[0] = min(result[0], time)
        result[1] = max(result[1], time)


@unlocked_kernel
def mark_ids(offsets, ids, rows, bitmap):
    """Set the bit (a byte of ``bitmap``, whose size is a power of two) of each id's hash; returns the size of the
    longest id in bytes. ``offsets`` are int32, as Arrow has them.
    """
    longest = np.int64(0)
    mask = np.uint64(bitmap.size - 1)
    for i in range(rows):
        start = load_offset(offsets, 4, i)
        count = load_offset(offsets, 4, i + 1) - start
        bitmap[np.int64(hash_id(ids + start, count, ONE, ONE) & mask)] = 1
        longest = max(longest, count)
    return longest


@kernel
def longest_id(offsets, offset_bytes, rows):
    """The bytes of the longest of so many ids, 0 of none."""
    longest = np.int64(0)
    for i in range(rows):
        longest = max(longest, load_offset(offsets, offset_bytes, i + 1) - load_offset(offsets, offset_bytes, i))
    return longest
