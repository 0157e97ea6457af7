"""The kernel that turns columns into rows: a block at a time, beside the segment, before anything is published."""

from __future__ import annotations

from quorin.engine.format.abi import (
    C_CELL,
    C_ITEM_BYTES,
    C_KIND,
    C_NULL_BYTE,
    C_NULL_MASK,
    C_VALIDITY,
    C_VALIDITY_OFFSET,
    C_VALUES,
    COLUMN_ITEMS,
    KIND_FIXED,
)
from quorin.engine.kernels.compiling import helper, inlined
from quorin.engine.kernels.memory import copy_bytes, load_u8, load_u32, load_u64, store_u8, store_u32, store_u64
from quorin.engine.kernels.rows import HAS_NULLS


@helper
def stage_rows(columns, body_bytes, first, last, bodies, flags):
    """Write the bodies of rows ``first … last-1`` to an address, one after the other, and their flags to an array.

    Heap cells are left zero; their validity bits are set as they will be. A column is gone through at once for all
    rows: that is what makes a block quicker than its rows.
    """
    zero(bodies, body_bytes)
    for c in range(0, columns.size, COLUMN_ITEMS):
        place = bodies + columns[c + C_NULL_BYTE]
        store_u8(place, load_u8(place) | columns[c + C_NULL_MASK])
    for r in range(last - first):
        flags[r] = 0
        if r > 0:
            copy_bytes(bodies + r * body_bytes, bodies, body_bytes)
    for c in range(0, columns.size, COLUMN_ITEMS):
        fixed = columns[c + C_KIND] == KIND_FIXED
        if columns[c + C_VALIDITY] != 0:
            stage_nullable(columns, c, fixed, body_bytes, first, last, bodies, flags)
        elif fixed:
            size = columns[c + C_ITEM_BYTES]
            stage_values(
                bodies + columns[c + C_CELL], body_bytes, columns[c + C_VALUES] + first * size, size, last - first
            )


@inlined
def stage_values(cell, body_bytes, values, size, count):
    """Copy ``count`` values of ``size`` bytes into as many bodies, ``body_bytes`` apart; the first goes to ``cell``."""
    if size == 4:
        for r in range(count):
            store_u32(cell + r * body_bytes, load_u32(values + 4 * r))
    elif size == 8:
        for r in range(count):
            store_u64(cell + r * body_bytes, load_u64(values + 8 * r))
    else:
        for r in range(count):
            copy_bytes(cell + r * body_bytes, values + r * size, size)


@helper
def stage_nullable(columns, c, fixed, body_bytes, first, last, bodies, flags):
    """Copy rows ``first … last-1`` of a column that may have nulls into their bodies, with validity bits and flags;
    of a heap cell only the validity.
    """
    size = columns[c + C_ITEM_BYTES]
    for i in range(first, last):
        body = bodies + (i - first) * body_bytes
        if is_null(columns, c, i):
            byte = body + columns[c + C_NULL_BYTE]
            store_u8(byte, load_u8(byte) & ~columns[c + C_NULL_MASK])
            if fixed:
                flags[i - first] = HAS_NULLS
        elif fixed:
            copy_bytes(body + columns[c + C_CELL], columns[c + C_VALUES] + i * size, size)


@inlined
def zero(address, count):
    """Set bytes to zero."""
    for i in range(count):
        store_u8(address + i, 0)


@inlined
def is_null(columns, c, i):
    """Whether value ``i`` of a column is null by Arrow's validity bitmap."""
    validity = columns[c + C_VALIDITY]
    if validity == 0:
        return False
    bit = columns[c + C_VALIDITY_OFFSET] + i
    return load_u8(validity + (bit >> 3)) >> (bit & 7) & 1 == 0
