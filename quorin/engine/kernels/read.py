"""The read kernels: find a row, copy it, check that it did not change meanwhile.

They follow the commit rule of :mod:`quorin.engine.format.segment` from the reader's side. Nothing here writes to a
segment or waits for a writer: a row that was replaced in the middle of a copy is simply read again, through its slot,
which already points to the newer one.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    BAD_ID,
    BAD_OUT,
    BATCH_SAMPLES,
    CODES,
    CONSTANT,
    CONTENDED,
    CORRUPT,
    D_HEADER,
    D_HEAP,
    D_HEAP_BYTES,
    D_INDEX,
    D_KEY_INLINE,
    D_MAX_ID_BYTES,
    D_ROW_LIMIT,
    D_ROW_STRIDE,
    D_ROWS,
    D_SEED_0,
    D_SEED_1,
    D_SLOT_COUNT,
    FOUND,
    MISSING,
    MISSING_FLOAT32,
    MOVED,
    NOT_ASCII,
    P_MISSING,
    P_OUT_BYTES,
    P_PATCH_COUNT,
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
)  # fmt: skip
from quorin.engine.kernels.compiling import helper, inlined, kernel, unlocked_kernel
from quorin.engine.kernels.counting import count_time, counters_of
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import (
    add_word,
    array_address,
    copy_bytes,
    fence_acquire,
    load_acquire,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    now_ns,
    prefetch,
    scale,
    store_f32,
    store_u8,
    store_u32,
    store_u64,
    text_address,
)  # fmt: skip
from quorin.schema import dtype

MAX_ATTEMPTS = 1 << 16
"""A read that finds its row replaced this often in a row returns to Python, which may handle a signal and calls
again."""
BLOCK = 32
"""Rows in flight in a batch: enough to hide the latency of memory, few enough for the cache to hold."""

_KEY_BYTES, _FLAGS, _KEY, _LONG_KEY = (
    fmt.row_offset("key_bytes"), fmt.row_offset("flags"), fmt.KEY_OFFSET, fmt.LONG_KEY_OFFSET,
)  # fmt: skip
_SUCCESSOR = fmt.header_offset("successor")
_DELETED, _HAS_NULLS = fmt.FLAG_DELETED, fmt.FLAG_HAS_NULLS
_CELL_SIZE, _CELL_COUNT = fmt.VAR_CELL.itemsize, fmt.cell_offset("count")
_FLOAT32, _FLOAT64, _INT32, _INT64 = int(dtype.float32), int(dtype.float64), int(dtype.int32), int(dtype.int64)

_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_ONE = np.uint64(1)
_FIRST = np.int64(0)
"""Not ``0``: numba would compile what is called with a literal once more."""
_READ_SAMPLE = np.uint64(READ_SAMPLES - 1)


@kernel
def read_one(plan, text, out):
    """Fill ``out`` with the row of an ASCII id, read in place. Returns a code; ``out`` is undefined unless FOUND."""
    if out.size * out.itemsize != plan[P_OUT_BYTES]:
        return BAD_OUT
    if not text._is_ascii:
        return NOT_ASCII
    return read_key(plan, text_address(text), text._length, array_address(out))


@kernel
def read_each(plans, text, out):
    """Fill ``out`` with the rows of an ASCII id in several segments, one after the other, then a byte for each that
    says whether it was found: where it was not, its row is zeros. Returns a code; ``out`` is undefined unless FOUND.

    ``plans`` are how many there are, the bytes of their rows together, and each plan after the count of its items.
    """
    if out.size != plans[1] + plans[0]:
        return BAD_OUT
    if not text._is_ascii:
        return NOT_ASCII
    target = array_address(out)
    found = target + plans[1]
    at = 2
    for number in range(plans[0]):
        plan = plans[at + 1 : at + 1 + plans[at]]
        code = read_key(plan, text_address(text), text._length, target)
        if code == MISSING:
            add_word(counters_of(plan) + 8 * W_MISSING, 1)
            fill_missing(plan, target, _FIRST, np.float32(0.0))
        elif code != FOUND:
            return code
        store_u8(found + number, code == FOUND)
        target += plan[P_OUT_BYTES]
        at += 1 + plans[at]
    return FOUND


@inlined
def read_key(plan, key, count, out):
    """Copy the row of the ``count`` bytes at ``key`` to the address ``out``, and count that; returns a code."""
    if count == 0 or count > plan[D_MAX_ID_BYTES]:
        return BAD_ID
    h = hash_id(key, count, np.uint64(plan[D_SEED_0]), np.uint64(plan[D_SEED_1]))
    counters = counters_of(plan)
    reads = load_u64(counters + 8 * W_READS)
    timed = reads & _READ_SAMPLE == 0
    started = now_ns() if timed else 0
    code = read_row(plan, key, count, h, out, _FIRST)
    if timed:
        count_time(counters + 8 * W_READ_TIMES, counters + 8 * W_READ_NS, now_ns() - started)
    if code == FOUND:
        store_u64(counters + 8 * W_READS, reads + _ONE)
    return code


@unlocked_kernel
def read_many(plan, offsets, offset_bytes, data, first, last, out, found, missing):
    """Read rows ``first … last-1`` of a batch into the bytes of ``out``, as the plan says, and into ``found``.

    Ids are an Arrow string column: ``offsets`` (address of ``offset_bytes``-wide integers) into ``data``. Returns
    ``last`` when all are read, else ``STOPPED - CODES * row - code`` for the first row that was not: its id is empty
    (BAD_ID), its segment has a successor (MOVED), it kept changing (CONTENDED), or its slot points nowhere (CORRUPT).
    """
    hashes = np.empty(BLOCK, np.uint64)
    target = array_address(out)
    counters = counters_of(plan)
    started = now_ns() if add_word(counters + 8 * W_BATCHES, 1) % BATCH_SAMPLES == 0 else 0
    absent = 0
    k0 = np.uint64(plan[D_SEED_0])
    k1 = np.uint64(plan[D_SEED_1])
    for begin in range(first, last, BLOCK):
        end = min(begin + BLOCK, last)
        for i in range(begin, end):
            start = load_offset(offsets, offset_bytes, i)
            h = hash_id(data + start, load_offset(offsets, offset_bytes, i + 1) - start, k0, k1)
            hashes[i - begin] = h
            prefetch(plan[D_INDEX] + 8 * scale(h, plan[D_SLOT_COUNT]))
        for i in range(begin, end):
            word = likely_word(plan, hashes[i - begin])
            if word != 0:
                row = row_address(plan, word)
                prefetch(row)
                prefetch(row + 64)
        for i in range(begin, end):
            start = load_offset(offsets, offset_bytes, i)
            count = load_offset(offsets, offset_bytes, i + 1) - start
            code = read_row(plan, data + start, count, hashes[i - begin], target, i)
            if count == 0:
                code = BAD_ID
            if code == MOVED or code == CONTENDED or code == BAD_ID or code == CORRUPT:  # noqa: SIM109 - a tuple is slower in numba
                return STOPPED - CODES * i - code
            found[i] = code == FOUND
            if code != FOUND:
                absent += 1
                fill_missing(plan, target, i, missing)
    add_word(counters + 8 * W_BATCH_ROWS, last - first)
    if absent > 0:
        add_word(counters + 8 * W_MISSING, absent)
    if started != 0:
        count_time(counters + 8 * W_BATCH_TIMES, counters + 8 * W_BATCH_NS, now_ns() - started)
    return last


@inlined
def load_offset(offsets, offset_bytes, i):
    """Arrow's offset ``i``, of 4 or 8 bytes."""
    if offset_bytes == 4:
        return load_i32(offsets + 4 * i)
    return load_i64(offsets + 8 * i)


@inlined
def row_address(plan, word):
    """Where the row that a slot word names begins."""
    return plan[D_ROWS] + np.int64((word & _LOW_32) - _ONE) * plan[D_ROW_STRIDE]


@inlined
def likely_word(plan, h):
    """The word of the slot where a key with this hash probably is, 0 if none looks like it; only for prefetching."""
    slot = scale(h, plan[D_SLOT_COUNT])
    tag = h & _LOW_32
    for _ in range(8):
        word = load_u64(plan[D_INDEX] + 8 * slot)
        if word == 0 or word >> _SHIFT_32 == tag:
            return word
        slot += 1
        if slot == plan[D_SLOT_COUNT]:
            slot = 0
    return np.uint64(0)


@helper
def read_row(plan, key, count, h, out, index):
    """Copy one row by the spans of ``plan`` to place ``index`` of the output; returns a code.

    The order of loads is the argument: slot word (acquire), stamp (acquire), key and values, fence (acquire), stamp,
    slot word. An even stamp that is the same before and after means that nobody wrote the row in between; the same slot
    word means that the row is this key's.
    """
    tag = h & _LOW_32
    for _ in range(MAX_ATTEMPTS):
        if load_acquire(plan[D_HEADER] + _SUCCESSOR) != 0:
            return MOVED
        slot = scale(h, plan[D_SLOT_COUNT])
        for _probe in range(plan[D_SLOT_COUNT]):
            slot_address = plan[D_INDEX] + 8 * slot
            word = load_acquire(slot_address)
            if word == 0:
                return MISSING
            if word >> _SHIFT_32 == tag:
                if np.int64(word & _LOW_32) > plan[D_ROW_LIMIT]:
                    return CORRUPT
                row = row_address(plan, word)
                stamp = load_acquire(row)
                same_key = key_equals(plan, row, key, count)
                flags = load_u16(row + _FLAGS)
                if same_key and flags & _DELETED == 0:
                    copy_spans(plan, row, out, index)
                    if flags & _HAS_NULLS != 0:
                        patch_nulls(plan, row, out, index)
                fence_acquire()
                if load_u64(row) != stamp or stamp & _ONE != 0 or load_u64(slot_address) != word:
                    break
                if same_key:
                    return FOUND if flags & _DELETED == 0 else MISSING
            slot += 1
            if slot == plan[D_SLOT_COUNT]:
                slot = 0
        else:
            return MISSING
    return CONTENDED


@inlined
def key_equals(plan, row, key, count):
    """Whether the row's key is the ``count`` bytes at ``key``. The row may be changing: every offset is checked."""
    if load_u16(row + _KEY_BYTES) != count:
        return False
    place = row + _KEY
    if count > plan[D_KEY_INLINE]:
        offset = load_i64(row + _LONG_KEY)
        if offset < 0 or offset > plan[D_HEAP_BYTES] - count:
            return False
        place = plan[D_HEAP] + offset
    i = 0
    while i + 8 <= count:
        if load_u64(place + i) != load_u64(key + i):
            return False
        i += 8
    if i + 4 <= count:
        if load_u32(place + i) != load_u32(key + i):
            return False
        i += 4
    while i < count:
        if load_u8(place + i) != load_u8(key + i):
            return False
        i += 1
    return True


@inlined
def copy_spans(plan, row, out, index):
    """Copy a row to the output, span by span."""
    at = P_SPANS
    for _ in range(plan[P_SPAN_COUNT]):
        source = row + plan[at + SPAN_SOURCE]
        target = out + plan[at + SPAN_TARGET] + index * plan[at + SPAN_STEP]
        count = plan[at + SPAN_COUNT]
        code = plan[at + SPAN_CODE]
        if code == RAW_BYTES:
            # Most columns are 4 or 8 bytes wide, and a call of memcpy costs more than they do.
            if count == 4:
                store_u32(target, load_u32(source))
            elif count == 8:
                store_u64(target, load_u64(source))
            else:
                copy_bytes(target, source, count)
        elif code == _FLOAT32:
            for i in range(count):
                store_u32(target + 4 * i, load_u32(source + 4 * i))
        elif code == _FLOAT64:
            for i in range(count):
                store_f32(target + 4 * i, np.float32(load_f64(source + 8 * i)))
        elif code == _INT32:
            for i in range(count):
                store_f32(target + 4 * i, np.float32(load_i32(source + 4 * i)))
        elif code == _INT64:
            for i in range(count):
                store_f32(target + 4 * i, np.float32(load_i64(source + 8 * i)))
        elif code == CONSTANT:
            for i in range(count):
                store_u32(target + 4 * i, plan[at + SPAN_SOURCE])
        elif code == ZEROS:
            for i in range(count):
                store_u8(target + i, 0)
        else:
            for i in range(count):
                store_f32(target + 4 * i, np.float32(load_u8(source + i)))
        at += SPAN_ITEMS


@helper
def patch_nulls(plan, row, out, index):
    """Put each null field's default where its value would stand."""
    at = P_SPANS + SPAN_ITEMS * plan[P_SPAN_COUNT]
    for _ in range(plan[P_PATCH_COUNT]):
        if load_u8(row + plan[at + PATCH_NULL_BYTE]) & plan[at + PATCH_NULL_MASK] == 0:
            target = out + plan[at + PATCH_TARGET] + index * plan[at + PATCH_STEP]
            for i in range(plan[at + PATCH_COUNT]):
                store_u32(target + 4 * i, plan[at + PATCH_BITS])
        at += PATCH_ITEMS


@helper
def fill_missing(plan, out, index, missing):
    """Fill the output of a row that was not found."""
    at = P_SPANS
    for _ in range(plan[P_SPAN_COUNT]):
        target = out + plan[at + SPAN_TARGET] + index * plan[at + SPAN_STEP]
        for i in range(plan[at + SPAN_COUNT]):
            if plan[P_MISSING] == MISSING_FLOAT32:
                store_f32(target + 4 * i, missing)
            else:
                store_u8(target + i, 0)
        at += SPAN_ITEMS


@unlocked_kernel
def gather_values(cells, heap, heap_bytes, ends, data):
    """Copy the heap bytes of VAR_CELLs to ``data``, value ``i`` to ``ends[i] … ends[i + 1]``: FOUND, or CORRUPT."""
    for i in range(ends.size - 1):
        size = ends[i + 1] - ends[i]
        offset = load_i64(cells + _CELL_SIZE * i)
        if offset < 0 or offset > heap_bytes - size:
            return CORRUPT
        if size > 0:
            copy_bytes(data + ends[i], heap + offset, size)
    return FOUND


@unlocked_kernel
def gather_texts(cells, heap, heap_bytes, ends, item_ends, data):
    """The same for lists of strings, without their end offsets; ``item_ends`` says where each item ends in ``data``."""
    item = 0
    for i in range(ends.size - 1):
        offset = load_i64(cells + _CELL_SIZE * i)
        count = load_u32(cells + _CELL_SIZE * i + _CELL_COUNT)
        size = ends[i + 1] - ends[i]
        if offset < 0 or offset > heap_bytes - size - 4 * count or item + count > item_ends.size:
            return CORRUPT
        for k in range(count):
            item_ends[item] = ends[i] + load_u32(heap + offset + 4 * k)
            item += 1
        if size > 0:
            copy_bytes(data + ends[i], heap + offset + 4 * count, size)
    return FOUND
