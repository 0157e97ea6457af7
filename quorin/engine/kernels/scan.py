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
    LIVE_ROWS,
    MISSING,
    P_SPANS,
    S_CODE,
    S_ROWS,
    SPAN_ITEMS,
    SPAN_SOURCE,
    SPAN_STEP,
    SPAN_TARGET,
)
from quorin.engine.kernels.carry import fetch_row
from quorin.engine.kernels.compiling import helper, unlocked_kernel
from quorin.engine.kernels.memory import array_address, copy_bytes, load_acquire, load_i64, load_u8, load_u16, store_i64
from quorin.engine.kernels.read import copy_spans, fill_missing
from quorin.engine.kernels.rows import (
    DELETED,
    FLAGS,
    KEY_BYTES,
    MAX_ATTEMPTS,
    POSITION,
    is_row,
    is_unchanged,
    key_address,
    row_address,
    slot_address,
)

_SLOTS_AHEAD = 8
"""So many slots before their turn the rows are fetched: they lie in no order."""


@unlocked_kernel
def scan_rows(segment, first, last, prefix, least, rows, id_ends, ids, deleted, out, result):
    """Copy the live rows of slots ``first … last-1`` whose id begins with ``prefix`` to the columns of ``out``, as the
    plan says, and their ids, one after the other, to ``ids``; ``id_ends`` says where each ends.

    With a ``least`` position instead of LIVE_ROWS, copies the rows and deletions of that position and later, and says
    in ``deleted`` which is which; the plan then begins with event time and position, which are all that a deletion has.

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
        code = copy_chosen_row(segment, slot, prefix, least, done, id_ends, ids, deleted, target)
        if code == FOUND:
            result[S_ROWS] = done + 1
        elif code != MISSING:
            result[S_CODE] = code
            return slot
    return last


@helper
def copy_chosen_row(segment, slot, prefix, least, index, id_ends, ids, deleted, out):
    """Copy the row of a slot to row ``index`` of the output, unless it has none, or one that was not asked for."""
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
            is_deleted = load_u16(row + FLAGS) & DELETED != 0
            is_chosen = not is_deleted if least == LIVE_ROWS else load_i64(row + POSITION) >= least
            if is_chosen and has_prefix(key, count, prefix):
                copy_bytes(array_address(ids) + start, key, count)
                if is_deleted:
                    copy_deletion(segment, row, out, index)
                else:
                    copy_spans(segment, row, out, index)
                if least != LIVE_ROWS:
                    deleted[index] = is_deleted
                id_ends[index + 1] = start + count
                code = FOUND
        if is_unchanged(row, stamp, address, word):
            return code
    return CONTENDED


@helper
def copy_deletion(segment, row, out, index):
    """Copy event time and position, the first spans of the plan; the other columns are zeros."""
    fill_missing(segment, out, index, np.float32(0.0))
    for at in (P_SPANS, P_SPANS + SPAN_ITEMS):
        source = row + segment[at + SPAN_SOURCE]
        store_i64(out + segment[at + SPAN_TARGET] + index * segment[at + SPAN_STEP], load_i64(source))


@helper
def has_prefix(key, count, prefix):
    """Whether the ``count`` bytes at ``key`` begin with the bytes of ``prefix``."""
    if count < prefix.size:
        return False
    for i in range(prefix.size):  # noqa: SIM110 - numba compiles no generator inside a call
        if load_u8(key + i) != prefix[i]:
            return False
    return True
