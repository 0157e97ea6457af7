"""The table by which the write kernels find the last values of fields with a history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import C_CELL, COLUMN_ITEMS, G_RING_ITEMS

if TYPE_CHECKING:
    from quorin.engine.arrays import Int64s
    from quorin.schema import Schema


def ring_table(schema: Schema, columns: Int64s) -> Int64s:
    """The rings of a schema as :mod:`quorin.engine.format.abi` lays them out, and where each has its column in a column
    table.
    """
    layout, cells = fmt.body_layout(schema), columns[C_CELL::COLUMN_ITEMS].tolist()
    table = [layout.ring_head, layout.end - layout.ring_head]
    for ring in layout.rings:
        cell = ring.cell
        column = COLUMN_ITEMS * cells.index(cell.offset) if cell.offset in cells else -1
        parts = (ring.count, ring.times, ring.positions, ring.ties, ring.values, ring.validity)
        row = (ring.capacity, *parts, cell.byte_count, column)
        assert len(row) == G_RING_ITEMS  # noqa: S101 - what the kernels step by
        table += row
    return np.array(table, np.int64)
