"""The kernel that finds an Arrow batch's memory, by the C data interface.

https://arrow.apache.org/docs/format/CDataInterface.html
"""

from __future__ import annotations

from quorin.engine.format.abi import (
    A_CELL,
    A_CELL_BYTES,
    A_COLUMN,
    A_ELEMENT_BYTES,
    A_KIND,
    A_LIST_SIZE,
    A_NULL_BYTE,
    A_NULL_MASK,
    ARROW_ITEMS,
    C_CELL,
    C_INNER_OFFSET_BYTES,
    C_INNER_OFFSETS,
    C_ITEM_BYTES,
    C_KIND,
    C_NULL_BYTE,
    C_NULL_MASK,
    C_OFFSET_BYTES,
    C_OFFSETS,
    C_VALIDITY,
    C_VALIDITY_OFFSET,
    C_VALUES,
    COLUMN_ITEMS,
    KIND_FIXED,
    KIND_TEXT_LIST,
)
from quorin.engine.kernels.compiling import inlined, kernel
from quorin.engine.kernels.memory import load_i64

_NULL_COUNT, _OFFSET, _BUFFERS, _CHILDREN = 8, 16, 40, 48
"""Bytes from the start of a ``struct ArrowArray``."""
_OFFSET_BYTES = 4


@kernel
def arrow_columns(batch, plan, empty, columns):
    """Fill ``columns``, the table of :func:`quorin.engine.kernels.write.apply_rows`, for a batch at an address.

    ``plan`` says for each column where it is in the batch and what it is; ``empty`` is where buffers that Arrow leaves
    out may be taken to be.
    """
    for number in range(plan.size // ARROW_ITEMS):
        p = number * ARROW_ITEMS
        c = number * COLUMN_ITEMS
        array = child(batch, plan[p + A_COLUMN])
        offset = load_i64(array + _OFFSET)
        columns[c + C_CELL] = plan[p + A_CELL]
        columns[c + C_NULL_BYTE] = plan[p + A_NULL_BYTE]
        columns[c + C_NULL_MASK] = plan[p + A_NULL_MASK]
        columns[c + C_KIND] = plan[p + A_KIND]
        columns[c + C_ITEM_BYTES] = plan[p + A_CELL_BYTES]
        # Arrays that were decoded from Parquet have a bitmap though nothing is null; without one they are much quicker.
        columns[c + C_VALIDITY] = 0 if load_i64(array + _NULL_COUNT) == 0 else buffer(array, 0, 0)
        columns[c + C_VALIDITY_OFFSET] = offset
        columns[c + C_OFFSETS] = 0
        columns[c + C_OFFSET_BYTES] = 0
        columns[c + C_INNER_OFFSETS] = 0
        columns[c + C_INNER_OFFSET_BYTES] = 0
        element_bytes = plan[p + A_ELEMENT_BYTES]
        if plan[p + A_KIND] == KIND_FIXED:
            first = offset
            if plan[p + A_LIST_SIZE] > 0:
                array = child(array, 0)
                first = offset * plan[p + A_LIST_SIZE] + load_i64(array + _OFFSET)
            columns[c + C_VALUES] = buffer(array, 1, empty) + first * element_bytes
            continue
        columns[c + C_OFFSETS] = buffer(array, 1, empty) + offset * _OFFSET_BYTES
        columns[c + C_OFFSET_BYTES] = _OFFSET_BYTES
        if plan[p + A_LIST_SIZE] == 0:
            columns[c + C_VALUES] = buffer(array, 2, empty)
            continue
        array = child(array, 0)
        offset = load_i64(array + _OFFSET)
        if plan[p + A_KIND] == KIND_TEXT_LIST:
            columns[c + C_INNER_OFFSETS] = buffer(array, 1, empty) + offset * _OFFSET_BYTES
            columns[c + C_INNER_OFFSET_BYTES] = _OFFSET_BYTES
            columns[c + C_VALUES] = buffer(array, 2, empty)
        else:
            columns[c + C_VALUES] = buffer(array, 1, empty) + offset * element_bytes


@inlined
def child(array, index):
    """The address of an array's child."""
    return load_i64(load_i64(array + _CHILDREN) + 8 * index)


@inlined
def buffer(array, index, empty):
    """The address of an array's buffer, ``empty`` if it has none."""
    address = load_i64(load_i64(array + _BUFFERS) + 8 * index)
    return address if address != 0 else empty
