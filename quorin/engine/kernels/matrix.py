"""Columns that a read copied, as columns of a model's matrix: numbers converted, categories looked up, gaps filled.

What is read here is a copy that no writer changes, and heap cells, which stay as they are while their file is mapped.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format.abi import (
    CORRUPT,
    FOUND,
    M_BITS_BYTES,
    M_BITS_START,
    M_CATEGORIES,
    M_COLUMN_ITEMS,
    M_COLUMNS,
    M_COUNT,
    M_DTYPE,
    M_HEAD_ITEMS,
    M_MISSING,
    M_NULL_BYTE,
    M_NULL_MASK,
    M_START,
    M_TARGET,
    M_WIDTH,
    STOPPED,
    T_CODE,
    T_HEAD_ITEMS,
    T_KEY,
    T_KEY_BYTES,
    T_SLOT_COUNT,
    T_SLOT_ITEMS,
    T_UNKNOWN,
    T_UNKNOWN_IS_ERROR,
)
from quorin.engine.format.hashing import DEFAULT_SEED
from quorin.engine.kernels.compiling import helper, kernel, unlocked_kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import (
    array_address,
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    load_u32,
    store_i64,
)
from quorin.engine.kernels.rows import CELL_BYTES, CELL_SIZE, FLOAT32, FLOAT64, INT32, INT64
from quorin.schema import dtype

STRING = int(dtype.string)
_K0, _K1 = (np.uint64(word) for word in DEFAULT_SEED)
_INTEGER_BYTES = 8


@kernel
def fill_row(plan, keys, buffer, found, heap, heap_bytes, out):
    """:func:`fill` with the GIL, for few rows."""
    return fill(plan, keys, buffer, found, heap, heap_bytes, np.empty(1, np.int64), out)


@unlocked_kernel
def fill_rows(plan, keys, buffer, found, heap, heap_bytes, out):
    """:func:`fill` without the GIL."""
    return fill(plan, keys, buffer, found, heap, heap_bytes, np.empty(1, np.int64), out)


@helper
def fill(plan, keys, buffer, found, heap, heap_bytes, number, out):
    """Fill the columns of a plan in ``out``, a row-major matrix with a row for each of ``found``.

    Returns FOUND; CORRUPT if a text lies outside the heap; ``STOPPED - columns * row - column`` for the first category
    that is unknown where that is an error, in the order of the plan's columns. ``number`` is memory for one integer.
    """
    rows = found.size
    source = array_address(buffer)
    words = array_address(plan)
    bits = source + plan[M_BITS_START] * rows
    for column in range(plan[M_COLUMNS]):
        at = M_HEAD_ITEMS + M_COLUMN_ITEMS * column
        kind = plan[at + M_DTYPE]
        count = plan[at + M_COUNT]
        table = plan[at + M_CATEGORIES]
        values = source + plan[at + M_START] * rows
        missing = load_f64(words + 8 * (at + M_MISSING))
        for row in range(rows):
            target = row * plan[M_WIDTH] + plan[at + M_TARGET]
            null_byte = bits + row * plan[M_BITS_BYTES] + plan[at + M_NULL_BYTE]
            first = row * count
            if not found[row] or load_u8(null_byte) & plan[at + M_NULL_MASK] == 0:
                for i in range(count):
                    out[target + i] = missing
            elif table >= 0:
                key = array_address(number)
                size = _INTEGER_BYTES
                if kind == STRING:
                    offset = load_i64(values + CELL_SIZE * row)
                    size = load_u32(values + CELL_SIZE * row + CELL_BYTES)
                    if offset < 0 or offset > heap_bytes - size:
                        return CORRUPT
                    key = heap + offset
                elif kind == INT64:
                    store_i64(key, load_i64(values + 8 * row))
                elif kind == INT32:
                    store_i64(key, load_i32(values + 4 * row))
                else:
                    store_i64(key, load_u8(values + row))
                slot = find_category(plan, table, array_address(keys), key, size)
                if slot < 0 and plan[table + T_UNKNOWN_IS_ERROR] != 0:
                    return STOPPED - plan[M_COLUMNS] * row - column
                out[target] = load_f64(words + 8 * (table + T_UNKNOWN if slot < 0 else slot + T_CODE))
            elif kind == FLOAT32:
                for i in range(count):
                    out[target + i] = load_f32(values + 4 * (first + i))
            elif kind == FLOAT64:
                for i in range(count):
                    out[target + i] = load_f64(values + 8 * (first + i))
            elif kind == INT32:
                for i in range(count):
                    out[target + i] = load_i32(values + 4 * (first + i))
            elif kind == INT64:
                for i in range(count):
                    out[target + i] = load_i64(values + 8 * (first + i))
            else:
                for i in range(count):
                    out[target + i] = load_u8(values + first + i)
    return FOUND


@helper
def find_category(plan, table, keys, key, size):
    """Where the slot of a category is in the plan, -1 if the table has no such key."""
    slot_count = plan[table + T_SLOT_COUNT]
    slot = np.int64(hash_id(key, size, _K0, _K1) & np.uint64(slot_count - 1))
    while True:
        at = table + T_HEAD_ITEMS + T_SLOT_ITEMS * slot
        if plan[at + T_KEY_BYTES] < 0:
            return np.int64(-1)
        if plan[at + T_KEY_BYTES] == size and is_same(keys + plan[at + T_KEY], key, size):
            return at
        slot = (slot + 1) & (slot_count - 1)


@helper
def is_same(one, other, size):
    """Whether ``size`` bytes at two addresses are the same."""
    i = 0
    while i < size and load_u8(one + i) == load_u8(other + i):
        i += 1
    return i == size
