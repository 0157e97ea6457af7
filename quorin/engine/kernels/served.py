"""Writes records of served requests into a ring, and turns them into columns: see :mod:`quorin.engine.format.ring`.

Writers keep the GIL, so that a process writes one record at a time; the kernel of the collector releases it.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format.abi import (
    U_DATA,
    U_DESCRIPTION,
    U_EVENT_TIME,
    U_IDS,
    U_KEYS,
    U_POSITION,
    U_REQUEST,
    U_ROW,
    U_TIME,
    U_VIEW,
)
from quorin.engine.format.ring import (
    NOT_FOUND,
    PRESENT,
    RECORD_BYTES,
    RECORD_DATA_BYTES,
    RECORD_GROUPS,
    RECORD_HEAD_BYTES,
    RECORD_ID_BYTES,
    RECORD_REQUEST,
    RECORD_ROWS,
    RECORD_TIME,
    RECORD_VIEWS,
    RING_BEGUN,
    RING_DROPPED,
    RING_HEAD,
    RING_HEADER_BYTES,
    RING_TAIL,
)
from quorin.engine.kernels.compiling import helper, inlined, kernel, unlocked_kernel
from quorin.engine.kernels.memory import (
    add_word,
    array_address,
    copy_bytes,
    load_acquire,
    load_i32,
    load_i64,
    load_u8,
    load_u64,
    store_i64,
    store_release,
    store_u8,
    store_u32,
    text_address,
)


@kernel
def log_row(ring, time_ns, number, request_id, entity_id, row, ends):
    """Write the record of one entity that was read in several views by one id; 0 if the ring is full.

    ``ring`` has the address and the capacity of the ring. ``row`` is what was read: for each view, from
    ``ends[view]``, event time, position and more, and behind the last a byte for each view: whether it was found.
    """
    views, id_bytes, key_bytes = ends.size - 1, len(request_id), len(entity_id)
    size = RECORD_HEAD_BYTES + padded(views) + padded(id_bytes) + 8 + padded(key_bytes) + 24 * views
    record = begin(ring[0], ring[1], size)
    if record == 0:
        return 0
    write_head(record, size, time_ns, number, 1, 1, views, id_bytes, 0)
    address = record + RECORD_HEAD_BYTES
    for view in range(views):
        store_u8(address + view, 0)
    address += padded(views)
    copy_bytes(address, text_address(request_id), id_bytes)
    address += padded(id_bytes)
    store_u32(address, 0)
    store_u32(address + 4, key_bytes)
    copy_bytes(address + 8, text_address(entity_id), key_bytes)
    address += 8 + padded(key_bytes)
    source = array_address(row)
    found = source + ends[views]
    for view in range(views):
        is_found = load_u8(found + view) != 0
        store_i64(address, load_i64(source + ends[view] + 8) if is_found else 0)
        store_i64(address + 8, load_i64(source + ends[view]) if is_found else 0)
        store_u8(address + 16, PRESENT if is_found else NOT_FOUND)
        address += 24
    finish(ring[0])
    return 1


@kernel
def log_record(ring, content):
    """Write a whole record; 0 if the ring is full."""
    record = begin(ring[0], ring[1], content.size)
    if record == 0:
        return 0
    copy_bytes(record, array_address(content), content.size)
    finish(ring[0])
    return 1


@unlocked_kernel
def measure_records(ring, first, last, totals):
    """Add up what the records from ``first`` to ``last`` have: records, rows of views, bytes of entity ids and of
    request ids when they are repeated for each of these, bytes of data. Returns where the last good record ends: before
    ``last`` if what follows is no record.
    """
    at = first
    while at < last:
        record = ring[0] + RING_HEADER_BYTES + at % ring[1]
        size = load_i64(record)
        if size < 0 and -size % 8 == 0 and at % ring[1] - size == ring[1]:
            at -= size
            continue
        if not is_record(record, size, min(last - at, ring[1] - at % ring[1])):
            return at
        rows, groups, views = (
            load_i64(record + RECORD_ROWS),
            load_i64(record + RECORD_GROUPS),
            load_i64(record + RECORD_VIEWS),
        )
        kinds = record + RECORD_HEAD_BYTES
        address = kinds + padded(views) + padded(load_i64(record + RECORD_ID_BYTES))
        for group in range(groups):
            text = load_i32(address + 4 * rows)
            for view in range(views):
                if load_u8(kinds + view) == group:
                    totals[2] += text
            address += padded(4 * (rows + 1)) + padded(text)
        totals[0] += 1
        totals[1] += rows * views
        totals[3] += rows * views * load_i64(record + RECORD_ID_BYTES)
        totals[4] += load_i64(record + RECORD_DATA_BYTES)
        at += size
    return at


@unlocked_kernel
def unpack_records(ring, first, last, counts, numbers, states, ends, keys, ids, data):
    """Turn the records that :func:`measure_records` measured into columns, a value for each row of a view, by request,
    row and view: the rows ``U_…`` of ``numbers``, ``states``, and the texts ``keys``, ``ids`` and ``data``, whose ends
    are the rows of ``ends``. ``counts`` are how many requests and values there are before, and are counted on.
    """
    at, request, i = first, counts[0], counts[1]
    key_ends, id_ends, data_ends = ends[U_KEYS], ends[U_IDS], ends[U_DATA]
    while at < last:
        record = ring[0] + RING_HEADER_BYTES + at % ring[1]
        size = load_i64(record)
        if size < 0:
            at -= size
            continue
        row_count, view_count = load_i64(record + RECORD_ROWS), load_i64(record + RECORD_VIEWS)
        id_bytes, data_bytes = load_i64(record + RECORD_ID_BYTES), load_i64(record + RECORD_DATA_BYTES)
        request_id = record + RECORD_HEAD_BYTES + padded(view_count)
        columns = request_id + padded(id_bytes) + groups_bytes(record)
        column_bytes = 16 * row_count + padded(row_count)
        request_data = columns + view_count * column_bytes
        for row in range(row_count):
            for view in range(view_count):
                column = columns + view * column_bytes
                numbers[U_REQUEST, i], numbers[U_ROW, i], numbers[U_VIEW, i] = request, row, view
                numbers[U_TIME, i] = load_i64(record + RECORD_TIME)
                numbers[U_DESCRIPTION, i] = load_i64(record + RECORD_REQUEST)
                numbers[U_POSITION, i] = load_i64(column + 8 * row)
                numbers[U_EVENT_TIME, i] = load_i64(column + 8 * (row_count + row))
                states[i] = load_u8(column + 16 * row_count + row)
                key, key_bytes = key_of(record, view, row)
                copy_bytes(array_address(keys) + key_ends[i], key, key_bytes)
                key_ends[i + 1] = key_ends[i] + key_bytes
                copy_bytes(array_address(ids) + id_ends[i], request_id, id_bytes)
                id_ends[i + 1] = id_ends[i] + id_bytes
                own_data = data_bytes if row == 0 and view == 0 else 0
                copy_bytes(array_address(data) + data_ends[i], request_data, own_data)
                data_ends[i + 1] = data_ends[i] + own_data
                i += 1
        request += 1
        at += size
    counts[0], counts[1] = request, i


@helper
def key_of(record, view, row):
    """The address and the size of the entity id of a row in a view."""
    rows, views = load_i64(record + RECORD_ROWS), load_i64(record + RECORD_VIEWS)
    address = record + RECORD_HEAD_BYTES
    group = load_u8(address + view)
    address += padded(views) + padded(load_i64(record + RECORD_ID_BYTES))
    for _ in range(group):
        address += padded(4 * (rows + 1)) + padded(load_i32(address + 4 * rows))
    start, stop = load_i32(address + 4 * row), load_i32(address + 4 * (row + 1))
    return address + padded(4 * (rows + 1)) + start, stop - start


@helper
def groups_bytes(record):
    """The size of the entity ids of a record."""
    rows = load_i64(record + RECORD_ROWS)
    address = (
        record
        + RECORD_HEAD_BYTES
        + padded(load_i64(record + RECORD_VIEWS))
        + padded(load_i64(record + RECORD_ID_BYTES))
    )
    start = address
    for _ in range(load_i64(record + RECORD_GROUPS)):
        address += padded(4 * (rows + 1)) + padded(load_i32(address + 4 * rows))
    return address - start


@helper
def is_record(record, size, most):
    """Whether the parts of a record make up its size: what a bug elsewhere in the process wrote over it may not."""
    if size < RECORD_HEAD_BYTES or size > most or size % 8 != 0:
        return False
    rows, groups, views = (
        load_i64(record + RECORD_ROWS),
        load_i64(record + RECORD_GROUPS),
        load_i64(record + RECORD_VIEWS),
    )
    id_bytes, data_bytes = load_i64(record + RECORD_ID_BYTES), load_i64(record + RECORD_DATA_BYTES)
    if min(rows, groups, views, id_bytes, data_bytes) < 0 or max(rows, views, id_bytes, data_bytes) > size:
        return False
    if groups > views or views > 255:
        return False
    need = RECORD_HEAD_BYTES + padded(views) + padded(id_bytes)
    for _ in range(groups):
        if need + padded(4 * (rows + 1)) > size:
            return False
        offsets, last = record + need, 0
        for row in range(rows + 1):
            end = load_i32(offsets + 4 * row)
            if end < last or (row == 0 and end != 0):
                return False
            last = end
        need += padded(4 * (rows + 1)) + padded(last)
        if need > size:
            return False
    for view in range(views):
        if load_u8(record + RECORD_HEAD_BYTES + view) >= groups:
            return False
    need += views * (16 * rows + padded(rows))
    if need + padded(data_bytes) != size:
        return False
    for view in range(views):
        states = record + need - view * (16 * rows + padded(rows)) - padded(rows)
        for row in range(rows):
            if load_u8(states + row) > PRESENT:
                return False
    return True


@inlined
def padded(count):
    """A size rounded up to whole words."""
    return (count + 7) // 8 * 8


@helper
def begin(ring, capacity, size):
    """The address for a record of a size; 0 if there is no room, which is counted."""
    head = load_i64(ring + RING_HEAD)
    rest = capacity - head % capacity
    skipped = rest if rest < size else 0
    # The collector's reads come before its store of the tail; what is written from here on comes after it was seen.
    if head + skipped + size - np.int64(load_acquire(ring + RING_TAIL)) > capacity:
        add_word(ring + RING_DROPPED, 1)
        return 0
    store_i64(ring + RING_BEGUN, head + skipped + size)
    if skipped:
        store_i64(ring + RING_HEADER_BYTES + head % capacity, -skipped)
    return ring + RING_HEADER_BYTES + (head + skipped) % capacity


@inlined
def write_head(record, size, time_ns, number, rows, groups, views, id_bytes, data_bytes):
    """The words of a record."""
    store_i64(record + RECORD_BYTES, size)
    store_i64(record + RECORD_TIME, time_ns)
    store_i64(record + RECORD_REQUEST, number)
    store_i64(record + RECORD_ROWS, rows)
    store_i64(record + RECORD_GROUPS, groups)
    store_i64(record + RECORD_VIEWS, views)
    store_i64(record + RECORD_ID_BYTES, id_bytes)
    store_i64(record + RECORD_DATA_BYTES, data_bytes)


@inlined
def finish(ring):
    """Commit the record that was begun: the collector sees it whole."""
    store_release(ring + RING_HEAD, load_u64(ring + RING_BEGUN))
