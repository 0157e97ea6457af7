"""Variable-size values: how much of the heap the rows of a batch take, and how their values get there."""

from __future__ import annotations

from quorin.engine.format.abi import (
    C_CELL,
    C_INNER_OFFSET_BYTES,
    C_INNER_OFFSETS,
    C_ITEM_BYTES,
    C_KIND,
    C_OFFSET_BYTES,
    C_OFFSETS,
    C_VALUES,
    COLUMN_ITEMS,
    D_BODY_OFFSET,
    D_HEAP,
    DELETE,
    KIND_FIXED,
    KIND_VARIABLE,
)
from quorin.engine.kernels.compiling import helper, inlined
from quorin.engine.kernels.memory import copy_bytes, load_offset, load_u32, store_i64, store_u32
from quorin.engine.kernels.rows import CELL_BYTES, CELL_COUNT, CELL_OFFSET, HEAP_USED, aligned, count_change, counter
from quorin.engine.kernels.staging import is_null


@helper
def find_variable_columns(columns, mode, found):
    """Write where the variable-size columns begin in ``columns`` to ``found``; returns how many, 0 for deletions."""
    count = 0
    for c in range(0, columns.size, COLUMN_ITEMS):
        if columns[c + C_KIND] != KIND_FIXED and mode != DELETE:
            found[count] = c
            count += 1
    return count


@helper
def heap_needed(columns, heap_columns, i):
    """Heap bytes that row ``i`` of the batch takes."""
    total = 0
    for c in heap_columns:
        if not is_null(columns, c, i):
            total += aligned(variable_bytes(columns, c, i))
    return total


@helper
def heap_replaced(segment, old, columns, heap_columns):
    """Heap bytes that the replaced row alone referred to: all variable cells that the batch wrote anew."""
    total = 0
    body = old + segment[D_BODY_OFFSET]
    for c in heap_columns:
        total += aligned(load_u32(body + columns[c + C_CELL] + CELL_BYTES))
    return total


@helper
def variable_bytes(columns, c, i):
    """Heap bytes that value ``i`` of a variable-size column takes, before alignment."""
    first = load_offset(columns[c + C_OFFSETS], columns[c + C_OFFSET_BYTES], i)
    last = load_offset(columns[c + C_OFFSETS], columns[c + C_OFFSET_BYTES], i + 1)
    if columns[c + C_KIND] == KIND_VARIABLE:
        return (last - first) * columns[c + C_ITEM_BYTES]
    inner, width = columns[c + C_INNER_OFFSETS], columns[c + C_INNER_OFFSET_BYTES]
    return 4 * (last - first) + load_offset(inner, width, last) - load_offset(inner, width, first)


@inlined
def take_heap(segment, size):
    """The heap offset of ``size`` free bytes, which the caller has made sure of."""
    offset = counter(segment, HEAP_USED)
    count_change(segment, HEAP_USED, aligned(size))
    return offset


@helper
def write_variables(segment, row, columns, heap_columns, i):
    """Write the values of a staged row that are in the heap."""
    for c in heap_columns:
        if not is_null(columns, c, i):
            write_variable(segment, row + segment[D_BODY_OFFSET] + columns[c + C_CELL], columns, c, i)


@helper
def write_variable(segment, cell, columns, c, i):
    """Write value ``i`` of a variable-size column into the heap, and point the cell to it."""
    size = variable_bytes(columns, c, i)
    first = load_offset(columns[c + C_OFFSETS], columns[c + C_OFFSET_BYTES], i)
    last = load_offset(columns[c + C_OFFSETS], columns[c + C_OFFSET_BYTES], i + 1)
    offset = take_heap(segment, size)
    target = segment[D_HEAP] + offset
    if columns[c + C_KIND] == KIND_VARIABLE:
        copy_bytes(target, columns[c + C_VALUES] + first * columns[c + C_ITEM_BYTES], size)
    else:
        inner, width = columns[c + C_INNER_OFFSETS], columns[c + C_INNER_OFFSET_BYTES]
        base = load_offset(inner, width, first)
        for item in range(last - first):
            store_u32(target + 4 * item, load_offset(inner, width, first + item + 1) - base)
        copy_bytes(target + 4 * (last - first), columns[c + C_VALUES] + base, size - 4 * (last - first))
    store_i64(cell + CELL_OFFSET, offset)
    store_u32(cell + CELL_BYTES, size)
    store_u32(cell + CELL_COUNT, last - first)
