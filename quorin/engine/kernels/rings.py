"""The last values of fields with a history, which follow the body of a row: newest first, one for each event time.

Their rule looks at event times, tie-breakers and log positions alone, never at which row came first, so the same rows
in any order leave the same values. All of it happens in a row that is not published yet.

``order`` is what decides for a row: event time, tie-breaker and log position. ``k`` is the index of one of the last
values in its ring, 0 for the newest.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    B_MODE,
    B_RING_COUNT,
    B_RINGS,
    C_VALUES,
    D_BODY_OFFSET,
    DELETE,
    G_BYTES,
    G_CAPACITY,
    G_COLUMN,
    G_COUNT,
    G_HEAD,
    G_HEAD_ITEMS,
    G_POSITIONS,
    G_RING_ITEMS,
    G_TIES,
    G_TIMES,
    G_VALIDITY,
    G_VALUE_BYTES,
    G_VALUES,
)
from quorin.engine.kernels.compiling import helper, inlined
from quorin.engine.kernels.memory import copy_bytes, load_i64, load_u8, store_i64, store_u8
from quorin.engine.kernels.rows import EVENT_TIME, POSITION
from quorin.engine.kernels.staging import is_null, zero

_HEAD_FIELDS = fmt.RING_HEAD.fields
_CLEARED_NS, _CLEARED_POSITION = (_HEAD_FIELDS[name][1] for name in ("cleared_ns", "cleared_position"))
_HEAD_BYTES = fmt.RING_HEAD.itemsize

NO_TIE = -(2**63)
"""What a null tie-breaker, or that of a deletion, counts as. Stored with its sign flipped, it is 0."""


@inlined
def ring_item(batch, ring, item):
    """An item of a ring in the table of rings."""
    return load_i64(batch[B_RINGS] + 8 * (G_HEAD_ITEMS + G_RING_ITEMS * ring + item))


@inlined
def ring_head(segment, row, batch):
    """The address of the head of a row's rings."""
    return row + segment[D_BODY_OFFSET] + load_i64(batch[B_RINGS] + 8 * G_HEAD)


@helper
def joins_rings(segment, row, columns, batch, i, order):
    """Whether row ``i``, which is older than the live ``row``, changes the last values of that: as a deletion that is
    the newest so far, or with a value that belongs to them.
    """
    head = ring_head(segment, row, batch)
    time, tie, position = order
    if batch[B_MODE] == DELETE:
        return not is_cleared(head, time, NO_TIE, position - 1)
    if is_cleared(head, time, tie, position):
        return False
    for ring in range(batch[B_RING_COUNT]):  # noqa: SIM110 - numba compiles no generator inside a call
        if ring_index(segment, row, columns, batch, ring, i, order) >= 0:
            return True
    return False


@helper
def begin_rings(segment, row, old, is_alive, batch):
    """The last values of a new row, before those of its own: the old row's, none up to a deletion, or none at all."""
    head = ring_head(segment, row, batch)
    if is_alive:
        copy_bytes(head, ring_head(segment, old, batch), load_i64(batch[B_RINGS] + 8 * G_BYTES))
        return
    zero(head, _HEAD_BYTES)
    if old != 0:
        clear(head, load_i64(old + EVENT_TIME), load_i64(old + POSITION))
    for ring in range(batch[B_RING_COUNT]):
        store_i64(row + segment[D_BODY_OFFSET] + ring_item(batch, ring, G_COUNT), 0)


@helper
def join_rings(segment, row, columns, batch, i, order):
    """Write what row ``i`` of the batch changes in the last values of ``row``."""
    if batch[B_MODE] == DELETE:
        time, _, position = order
        clear(ring_head(segment, row, batch), time, position)
        for ring in range(batch[B_RING_COUNT]):
            drop_cleared(segment, row, batch, ring, time, position)
        return
    for ring in range(batch[B_RING_COUNT]):
        k = ring_index(segment, row, columns, batch, ring, i, order)
        if k >= 0:
            put_value(segment, row, columns, batch, ring, i, k, order)


@inlined
def clear(head, time, position):
    """Note a deletion."""
    store_i64(head, 1)
    store_i64(head + _CLEARED_NS, time)
    store_i64(head + _CLEARED_POSITION, position)


@helper
def is_cleared(head, time, tie, position):
    """Whether the newest deletion that is noted is after a row."""
    if load_i64(head) == 0:
        return False
    cleared = load_i64(head + _CLEARED_NS)
    if time != cleared:
        return time < cleared
    return tie == NO_TIE and position < load_i64(head + _CLEARED_POSITION)


@helper
def ring_index(segment, row, columns, batch, ring, i, order):
    """The index that the value of row ``i`` gets among the last values; -1 if it gets none, or is there already."""
    time, tie, position = order
    column = ring_item(batch, ring, G_COLUMN)
    if column < 0:
        return -1
    body = row + segment[D_BODY_OFFSET]
    count, times = load_i64(body + ring_item(batch, ring, G_COUNT)), body + ring_item(batch, ring, G_TIMES)
    k = 0
    while k < count and load_i64(times + 8 * k) > time:
        k += 1
    if k == ring_item(batch, ring, G_CAPACITY):
        return -1
    if k < count and load_i64(times + 8 * k) == time:
        stored = ring_tie(body, batch, ring, k)
        if tie != stored:
            return -1 if tie < stored else k
        later = position - load_i64(body + ring_item(batch, ring, G_POSITIONS) + 8 * k)
        if later < 0 or (later == 0 and holds(body, columns, batch, ring, column, i, k)):
            return -1
    return k


@helper
def ring_tie(body, batch, ring, k):
    """The tie-breaker of the ``k``-th of the last values."""
    ties = ring_item(batch, ring, G_TIES)
    return NO_TIE if ties < 0 else load_i64(body + ties + 8 * k) ^ NO_TIE


@helper
def holds(body, columns, batch, ring, column, i, k):
    """Whether the ``k``-th of the last values is that of row ``i``."""
    null = is_null(columns, column, i)
    if load_u8(body + ring_item(batch, ring, G_VALIDITY) + k) == np.uint8(null):
        return False
    size = ring_item(batch, ring, G_VALUE_BYTES)
    stored, value = body + ring_item(batch, ring, G_VALUES) + size * k, columns[column + C_VALUES] + size * i
    for byte in range(0 if null else size):  # noqa: SIM110 - numba compiles no generator inside a call
        if load_u8(stored + byte) != load_u8(value + byte):
            return False
    return True


@helper
def put_value(segment, row, columns, batch, ring, i, k, order):
    """Write the value of row ``i`` as the ``k``-th: over the one of its event time, else before the older ones, of
    which the oldest may go.
    """
    time, tie, position = order
    body, column = row + segment[D_BODY_OFFSET], ring_item(batch, ring, G_COLUMN)
    times, positions = body + ring_item(batch, ring, G_TIMES), body + ring_item(batch, ring, G_POSITIONS)
    values, validity = body + ring_item(batch, ring, G_VALUES), body + ring_item(batch, ring, G_VALIDITY)
    ties, size = ring_item(batch, ring, G_TIES), ring_item(batch, ring, G_VALUE_BYTES)
    counted = body + ring_item(batch, ring, G_COUNT)
    count = load_i64(counted)
    if k == count or load_i64(times + 8 * k) != time:
        last = min(count, ring_item(batch, ring, G_CAPACITY) - 1)
        shift(times, 8, k, last)
        shift(positions, 8, k, last)
        shift(values, size, k, last)
        shift(validity, 1, k, last)
        if ties >= 0:
            shift(body + ties, 8, k, last)
        store_i64(counted, last + 1)
    store_i64(times + 8 * k, time)
    store_i64(positions + 8 * k, position)
    if ties >= 0:
        store_i64(body + ties + 8 * k, tie ^ NO_TIE)
    null = is_null(columns, column, i)
    store_u8(validity + k, not null)
    if null:
        zero(values + size * k, size)
    else:
        copy_bytes(values + size * k, columns[column + C_VALUES] + size * i, size)


@helper
def shift(items, size, first, last):
    """Move items ``first … last-1`` on by one."""
    if size == 8:
        for k in range(last, first, -1):
            store_i64(items + 8 * k, load_i64(items + 8 * (k - 1)))
        return
    for byte in range(size * (last + 1) - 1, size * (first + 1) - 1, -1):
        store_u8(items + byte, load_u8(items + byte - size))


@helper
def drop_cleared(segment, row, batch, ring, time, position):
    """Take away the values up to a deletion."""
    body = row + segment[D_BODY_OFFSET]
    times, positions = body + ring_item(batch, ring, G_TIMES), body + ring_item(batch, ring, G_POSITIONS)
    counted = body + ring_item(batch, ring, G_COUNT)
    count = load_i64(counted)
    while count > 0:
        stored = load_i64(times + 8 * (count - 1))
        is_after = stored > time
        if stored == time:
            is_after = (
                ring_tie(body, batch, ring, count - 1) != NO_TIE or load_i64(positions + 8 * (count - 1)) > position
            )
        if is_after:
            break
        count -= 1
    store_i64(counted, count)
