"""The read kernels: find a row, copy it, check that it did not change meanwhile.

They follow the commit rule of :mod:`quorin.engine.format.segment` from the reader's side. Nothing here writes to a
segment or waits for a writer: a row that was replaced in the middle of a copy is simply read again, through its slot,
which already points to the newer one.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format.abi import (
    AHEAD,
    ANY_POSITION,
    BAD_ID,
    BAD_OUT,
    BATCH_SAMPLES,
    CODES,
    CONSTANT,
    CONTENDED,
    CORRUPT,
    D_HEADER,
    D_MAX_ID_BYTES,
    D_PARTITION_SHIFT,
    D_SEED_0,
    D_SEED_1,
    D_SLOT_COUNT,
    FOUND,
    MISSING,
    MISSING_FLOAT32,
    MOVED,
    NOT_ASCII,
    P_AGE_COUNT,
    P_MISSING,
    P_OUT_BYTES,
    P_PATCH_COUNT,
    P_POSITIONS,
    P_SPAN_COUNT,
    P_SPANS,
    PATCH_BITS,
    PATCH_COUNT,
    PATCH_ITEMS,
    PATCH_NULL_BYTE,
    PATCH_NULL_MASK,
    PATCH_STEP,
    PATCH_TARGET,
    RAW_BYTES,
    READ_SAMPLES,
    SPAN_CODE,
    SPAN_COUNT,
    SPAN_ITEMS,
    SPAN_SOURCE,
    SPAN_STEP,
    SPAN_TARGET,
    STOPPED,
    W_BATCH_NS,
    W_BATCH_ROWS,
    W_BATCH_TIMES,
    W_BATCHES,
    W_MISSING,
    W_READ_NS,
    W_READ_TIMES,
    W_READS,
    ZEROS,
)
from quorin.engine.format.hashing import DEFAULT_SEED
from quorin.engine.kernels.ages import withhold
from quorin.engine.kernels.compiling import helper, inlined, kernel, unlocked_kernel
from quorin.engine.kernels.counting import count_time, counters_of
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import (
    add_word,
    array_address,
    copy_bytes,
    load_acquire,
    load_f64,
    load_i32,
    load_i64,
    load_offset,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    now_ns,
    prefetch,
    store_f32,
    store_u8,
    store_u32,
    store_u64,
    text_address,
    wall_ns,
)
from quorin.engine.kernels.rows import (
    DELETED,
    FLAGS,
    FLOAT32,
    FLOAT64,
    HAS_NULLS,
    INT32,
    INT64,
    MAX_ATTEMPTS,
    ONE,
    POSITION,
    SUCCESSOR,
    home_slot,
    is_row,
    is_unchanged,
    key_equals,
    probe,
    row_address,
    slot_address,
)

BLOCK = 32
"""Rows in flight in a batch: enough to hide the latency of memory, few enough for the cache to hold."""

_FIRST = np.int64(0)
_ANY = np.int64(ANY_POSITION)
"""Not literals: numba would compile what is called with one once more."""
_SEED_0, _SEED_1 = map(np.uint64, DEFAULT_SEED)
_SLOTS_OF_A_LINE = 8
_READ_SAMPLE = np.uint64(READ_SAMPLES - 1)


@kernel
def read_one(segment, text, out):
    """Fill ``out`` with the row of an ASCII id, read in place; ages count from the system's clock. Returns a code;
    ``out`` is undefined unless FOUND or OUTDATED.
    """
    if out.size * out.itemsize != segment[P_OUT_BYTES]:
        return BAD_OUT
    if not text._is_ascii:
        return NOT_ASCII
    now = wall_ns() if segment[P_AGE_COUNT] > 0 else _FIRST
    return read_key(segment, text_address(text), text._length, array_address(out), now, _ANY)


@kernel
def read_each(segments, text, out):
    """:func:`read_each_limited` without limits."""
    if not text._is_ascii:
        return NOT_ASCII
    return read_keys(segments, text_address(text), text._length, out, _FIRST, _ANY)


@kernel
def read_each_limited(segments, text, out, now, at_most):
    """Fill ``out`` with the rows of an ASCII id in several segments, one after the other, then a byte for each that
    says whether it was found: where it was not, its row is zeros. Returns a code; ``out`` is undefined unless FOUND.

    ``segments`` holds how many there are, the bytes of their rows together, and the array of each after its length.
    Ages count from ``now``. AHEAD if a row was written after the log position ``at_most`` (:func:`last_counted`).
    """
    if not text._is_ascii:
        return NOT_ASCII
    return read_keys(segments, text_address(text), text._length, out, now, at_most)


@helper
def read_keys(segments, key, count, out, now, at_most):
    """Fill ``out`` as :func:`read_each_limited` does, for an id of ``count`` bytes at ``key``."""
    if out.size != segments[1] + segments[0]:
        return BAD_OUT
    target = array_address(out)
    found = target + segments[1]
    at = 2
    for number in range(segments[0]):
        segment = segments[at + 1 : at + 1 + segments[at]]
        code = read_key(segment, key, count, target, now, at_most)
        if code == MISSING:
            add_word(counters_of(segment) + 8 * W_MISSING, 1)
            fill_missing(segment, target, _FIRST, np.float32(0.0))
        elif code > FOUND:
            return code
        store_u8(found + number, code != MISSING)
        target += segment[P_OUT_BYTES]
        at += 1 + segments[at]
    return FOUND


@helper
def read_key(segment, key, count, out, now, at_most):
    """Copy the row of the ``count`` bytes at ``key`` to the address ``out``, and count that; returns a code."""
    if count == 0 or count > segment[D_MAX_ID_BYTES]:
        return BAD_ID
    h = hash_id(key, count, np.uint64(segment[D_SEED_0]), np.uint64(segment[D_SEED_1]))
    counters = counters_of(segment)
    reads = load_u64(counters + 8 * W_READS)
    timed = reads & _READ_SAMPLE == 0
    started = now_ns() if timed else 0
    code = read_row(segment, key, count, h, out, _FIRST, now, at_most)
    if timed:
        count_time(counters + 8 * W_READ_TIMES, counters + 8 * W_READ_NS, now_ns() - started)
    if code <= FOUND:
        store_u64(counters + 8 * W_READS, reads + ONE)
    return code


@unlocked_kernel
def read_many(segment, offsets, offset_bytes, data, first, last, out, found, missing, now, at_most, fresh):
    """Read rows ``first … last-1`` of a batch into the bytes of ``out``, as the plan says, and into ``found``.

    Ages count from ``now``. ``fresh`` is the address of a byte for each row: whether it is found and no value of it
    over its age limit; 0 if not asked for.

    Ids are an Arrow string column: ``offsets`` (address of ``offset_bytes``-wide integers) into ``data``. Returns
    ``last`` when all are read, else ``STOPPED - CODES * row - code`` for the first row that was not: its id is empty
    (BAD_ID), its segment has a successor (MOVED), it kept changing (CONTENDED), its slot points nowhere (CORRUPT), or
    it was written after the log position ``at_most`` (AHEAD; :func:`last_counted`).
    """
    hashes = np.empty(BLOCK, np.uint64)
    target = array_address(out)
    counters = counters_of(segment)
    started = now_ns() if add_word(counters + 8 * W_BATCHES, 1) % BATCH_SAMPLES == 0 else 0
    absent = 0
    k0 = np.uint64(segment[D_SEED_0])
    k1 = np.uint64(segment[D_SEED_1])
    for begin in range(first, last, BLOCK):
        end = min(begin + BLOCK, last)
        for i in range(begin, end):
            start = load_offset(offsets, offset_bytes, i)
            h = hash_id(data + start, load_offset(offsets, offset_bytes, i + 1) - start, k0, k1)
            hashes[i - begin] = h
            prefetch(slot_address(segment, home_slot(segment, h), 0))
        for i in range(begin, end):
            word = likely_word(segment, hashes[i - begin])
            if word != 0:
                row = row_address(segment, word)
                prefetch(row)
                prefetch(row + 64)
        for i in range(begin, end):
            start = load_offset(offsets, offset_bytes, i)
            count = load_offset(offsets, offset_bytes, i + 1) - start
            code = read_row(segment, data + start, count, hashes[i - begin], target, i, now, at_most)
            if count == 0:
                code = BAD_ID
            if code > MISSING:
                return STOPPED - CODES * i - code
            found[i] = code != MISSING
            if fresh != 0:
                store_u8(fresh + i, code == FOUND)
            if code == MISSING:
                absent += 1
                fill_missing(segment, target, i, missing)
    add_word(counters + 8 * W_BATCH_ROWS, last - first)
    if absent > 0:
        add_word(counters + 8 * W_MISSING, absent)
    if started != 0:
        count_time(counters + 8 * W_BATCH_TIMES, counters + 8 * W_BATCH_NS, now_ns() - started)
    return last


@helper
def likely_word(segment, h):
    """The word of the slot where a key with this hash probably is, 0 if none looks like it; only for prefetching."""
    home = home_slot(segment, h)
    distance = probe(segment, home, 0, _SLOTS_OF_A_LINE, h)
    if distance == _SLOTS_OF_A_LINE:
        return np.uint64(0)
    return load_u64(slot_address(segment, home, distance))


@helper
def read_row(segment, key, count, h, out, index, now, at_most):
    """Copy one row by the spans of the plan to row ``index`` of the output; returns a code.

    Without limits ``now`` is 0: then neither ages count nor ``at_most``.
    """
    home = home_slot(segment, h)
    slot_count = segment[D_SLOT_COUNT]
    positions = segment[P_POSITIONS]
    for _ in range(MAX_ATTEMPTS):
        if load_acquire(segment[D_HEADER] + SUCCESSOR) != 0:
            return MOVED
        distance = probe(segment, home, 0, slot_count, h)
        while distance < slot_count:
            slot = slot_address(segment, home, distance)
            word = load_acquire(slot)
            if word == 0:
                return MISSING
            if not is_row(segment, word):
                return CORRUPT
            row = row_address(segment, word)
            stamp = load_acquire(row)
            same_key = key_equals(segment, row, key, count)
            flags = load_u16(row + FLAGS)
            position = load_i64(row + POSITION) if now != 0 else np.int64(0)
            code = FOUND
            if same_key and flags & DELETED == 0:
                copy_spans(segment, row, out, index)
                if positions != 0:
                    store_u64(positions + 8 * index, load_u64(row + POSITION))
                if flags & HAS_NULLS != 0:
                    patch_nulls(segment, row, out, index)
                if now != 0:
                    code = withhold(segment, row, out, index, now)
            if not is_unchanged(row, stamp, slot, word):
                break
            if same_key:
                if now != 0 and position > last_counted(segment, key, count, at_most):
                    return AHEAD
                return code if flags & DELETED == 0 else MISSING
            distance = probe(segment, home, distance + 1, slot_count, h)
        else:
            return MISSING
    return CONTENDED


@helper
def last_counted(segment, key, count, at_most):
    """The last log position whose row counts. With several partitions ``at_most`` is the address of one for each."""
    shift = segment[D_PARTITION_SHIFT]
    if shift == 0 or at_most == ANY_POSITION:
        return at_most
    partition = hash_id(key, count, _SEED_0, _SEED_1) >> np.uint64(shift)
    return load_i64(at_most + 8 * np.int64(partition))


@inlined
def copy_spans(segment, row, out, index):
    """Copy a row to the output, one span of the plan after the other."""
    at = P_SPANS
    for _ in range(segment[P_SPAN_COUNT]):
        source = row + segment[at + SPAN_SOURCE]
        target = out + segment[at + SPAN_TARGET] + index * segment[at + SPAN_STEP]
        count = segment[at + SPAN_COUNT]
        code = segment[at + SPAN_CODE]
        if code == RAW_BYTES:
            # Most columns are 4 or 8 bytes wide, and a call of memcpy costs more than they do.
            if count == 4:
                store_u32(target, load_u32(source))
            elif count == 8:
                store_u64(target, load_u64(source))
            else:
                copy_bytes(target, source, count)
        elif code == FLOAT32:
            for i in range(count):
                store_u32(target + 4 * i, load_u32(source + 4 * i))
        elif code == FLOAT64:
            for i in range(count):
                store_f32(target + 4 * i, np.float32(load_f64(source + 8 * i)))
        elif code == INT32:
            for i in range(count):
                store_f32(target + 4 * i, np.float32(load_i32(source + 4 * i)))
        elif code == INT64:
            for i in range(count):
                store_f32(target + 4 * i, np.float32(load_i64(source + 8 * i)))
        elif code == CONSTANT:
            for i in range(count):
                store_u32(target + 4 * i, segment[at + SPAN_SOURCE])
        elif code == ZEROS:
            for i in range(count):
                store_u8(target + i, 0)
        else:
            for i in range(count):
                store_f32(target + 4 * i, np.float32(load_u8(source + i)))
        at += SPAN_ITEMS


@helper
def patch_nulls(segment, row, out, index):
    """Write each null field's default at the offset of its value."""
    at = P_SPANS + SPAN_ITEMS * segment[P_SPAN_COUNT]
    for _ in range(segment[P_PATCH_COUNT]):
        if load_u8(row + segment[at + PATCH_NULL_BYTE]) & segment[at + PATCH_NULL_MASK] == 0:
            target = out + segment[at + PATCH_TARGET] + index * segment[at + PATCH_STEP]
            for i in range(segment[at + PATCH_COUNT]):
                store_u32(target + 4 * i, segment[at + PATCH_BITS])
        at += PATCH_ITEMS


@helper
def fill_missing(segment, out, index, missing):
    """Fill the output of a row that was not found."""
    at = P_SPANS
    for _ in range(segment[P_SPAN_COUNT]):
        target = out + segment[at + SPAN_TARGET] + index * segment[at + SPAN_STEP]
        for i in range(segment[at + SPAN_COUNT]):
            if segment[P_MISSING] == MISSING_FLOAT32:
                store_f32(target + 4 * i, missing)
            else:
                store_u8(target + i, 0)
        at += SPAN_ITEMS
    if segment[P_POSITIONS] != 0:
        store_u64(segment[P_POSITIONS] + 8 * index, np.uint64(0))
