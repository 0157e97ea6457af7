"""The scan kernel: the rows of a segment, slot by slot, as columns.

A key keeps its slot as long as its generation lives, so a walk over the slots meets each entity at most once, whatever
a writer does meanwhile. Each row is copied as reads copy it: one whole version of it.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format.abi import (
    CONTENDED,
    CORRUPT,
    D_MAX_ID_BYTES,
    FOUND,
    MISSING,
    S_CODE,
    S_ROWS,
)
from quorin.engine.kernels.carry import fetch_row
from quorin.engine.kernels.compiling import helper, unlocked_kernel
from quorin.engine.kernels.memory import array_address, copy_bytes, load_acquire, load_u8, load_u16
from quorin.engine.kernels.read import copy_spans
from quorin.engine.kernels.rows import (
    DELETED,
    FLAGS,
    KEY_BYTES,
    MAX_ATTEMPTS,
    is_row,
    is_unchanged,
    key_address,
    row_address,
    slot_address,
)

_SLOTS_AHEAD = 8
"""So many slots before their turn the rows are fetched: they lie in no order."""


@unlocked_kernel
def scan_rows(segment, first, last, prefix, rows, id_ends, ids, out, result):
    """Copy the live rows of slots ``first … last-1`` whose id begins with ``prefix`` to the columns of ``out``, as the
    plan says, and their ids, one after the other, to ``ids``; ``id_ends`` says where each ends.

    Stops after ``rows`` rows, or when the next id may not fit. Returns the slot to go on with; ``result`` has how many
    rows were copied and a code: FOUND, or CORRUPT or CONTENDED for the row of that slot.
    """
    result[S_ROWS] = 0
    result[S_CODE] = FOUND
    target = array_address(out)
    for slot in range(first, last):
        done = result[S_ROWS]
        if done == rows or id_ends[done] + segment[D_MAX_ID_BYTES] > ids.size:
            return slot
        if slot + _SLOTS_AHEAD < last:
            fetch_row(segment, slot + _SLOTS_AHEAD)
        code = copy_live_row(segment, slot, prefix, done, id_ends, ids, target)
        if code == FOUND:
            result[S_ROWS] = done + 1
        elif code != MISSING:
            result[S_CODE] = code
            return slot
    return last


@helper
def copy_live_row(segment, slot, prefix, index, id_ends, ids, out):
    """Copy the row of a slot to row ``index`` of the output, unless it has none, a deleted one, or another prefix."""
    address = slot_address(segment, slot, 0)
    start = id_ends[index]
    for _ in range(MAX_ATTEMPTS):
        word = load_acquire(address)
        if word == 0:
            return MISSING
        if not is_row(segment, word):
            return CORRUPT
        row = row_address(segment, word)
        stamp = load_acquire(row)
        count = np.int64(load_u16(row + KEY_BYTES))
        key = np.int64(-1)
        if 0 < count <= segment[D_MAX_ID_BYTES]:
            key = key_address(segment, row, count)
        code = CORRUPT
        if key >= 0:
            code = MISSING
            if load_u16(row + FLAGS) & DELETED == 0 and has_prefix(key, count, prefix):
                copy_bytes(array_address(ids) + start, key, count)
                copy_spans(segment, row, out, index)
                id_ends[index + 1] = start + count
                code = FOUND
        if is_unchanged(row, stamp, address, word):
            return code
    return CONTENDED


@helper
def has_prefix(key, count, prefix):
    """Whether the ``count`` bytes at ``key`` begin with the bytes of ``prefix``."""
    if count < prefix.size:
        return False
    for i in range(prefix.size):  # noqa: SIM110 - numba compiles no generator inside a call
        if load_u8(key + i) != prefix[i]:
            return False
    return True
