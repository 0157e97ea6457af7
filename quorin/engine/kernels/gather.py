"""Kernels that collect the heap bytes of variable-size values."""

from __future__ import annotations

from quorin.engine.format.abi import CORRUPT, FOUND
from quorin.engine.kernels.compiling import unlocked_kernel
from quorin.engine.kernels.memory import copy_bytes, load_i64, load_u32
from quorin.engine.kernels.rows import CELL_COUNT, CELL_SIZE


@unlocked_kernel
def gather_values(cells, heap, heap_bytes, ends, data):
    """Copy the heap bytes of VAR_CELLs to ``data``, value ``i`` to ``ends[i] … ends[i + 1]``: FOUND, or CORRUPT."""
    for i in range(ends.size - 1):
        size = ends[i + 1] - ends[i]
        offset = load_i64(cells + CELL_SIZE * i)
        if offset < 0 or offset > heap_bytes - size:
            return CORRUPT
        if size > 0:
            copy_bytes(data + ends[i], heap + offset, size)
    return FOUND


@unlocked_kernel
def gather_texts(cells, heap, heap_bytes, ends, item_ends, data):
    """Copy the strings of lists of strings to ``data``, without their end offsets: list ``i`` goes to
    ``ends[i] … ends[i + 1]``. Fills ``item_ends`` with where each string ends in ``data``. Returns FOUND, or CORRUPT.
    """
    item = 0
    for i in range(ends.size - 1):
        offset = load_i64(cells + CELL_SIZE * i)
        count = load_u32(cells + CELL_SIZE * i + CELL_COUNT)
        size = ends[i + 1] - ends[i]
        if offset < 0 or offset > heap_bytes - size - 4 * count or item + count > item_ends.size:
            return CORRUPT
        for k in range(count):
            item_ends[item] = ends[i] + load_u32(heap + offset + 4 * k)
            item += 1
        if size > 0:
            copy_bytes(data + ends[i], heap + offset + 4 * count, size)
    return FOUND
