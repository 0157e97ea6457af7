"""The kernel that looks at all rows at once, for people and dashboards: how new and how old the events are."""

from __future__ import annotations

import numpy as np
from numba import njit

from quorin import format as fmt
from quorin.abi import D_INDEX, D_ROW_LIMIT, D_ROW_STRIDE, D_ROWS
from quorin.kernels.memory import load_acquire, load_i64, load_u16

_EVENT_TIME, _FLAGS = fmt.row_offset("event_time_ns"), fmt.row_offset("flags")
_LOW_32 = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)


@njit(cache=True, nogil=True, boundscheck=False)
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
