"""Variable-size values collected from the heap by compiled kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.format.abi import CORRUPT
from quorin.engine.reads.columns import Gather
from quorin.errors import CorruptSegmentError

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Bytes, Int64s
    from quorin.engine.memory.view import SegmentView


def points_nowhere(view: SegmentView) -> CorruptSegmentError:
    """The error for a row that points outside its segment's file."""
    return CorruptSegmentError(f"segment {view.name!r} is damaged: a row points outside the file; fill a new one")


def _gather_values(view: SegmentView, cells: AnyArray, ends: Int64s, data: Bytes) -> None:
    from quorin.engine import kernels

    heap, heap_bytes = view.mapping.address + view.layout.heap_offset, view.layout.heap_bytes
    if kernels.gather_values(cells.ctypes.data, heap, heap_bytes, ends, data.ctypes.data) == CORRUPT:
        raise points_nowhere(view)


def _gather_texts(view: SegmentView, cells: AnyArray, ends: Int64s, item_ends: Int64s, data: Bytes) -> None:
    from quorin.engine import kernels

    heap, heap_bytes = view.mapping.address + view.layout.heap_offset, view.layout.heap_bytes
    if kernels.gather_texts(cells.ctypes.data, heap, heap_bytes, ends, item_ends, data.ctypes.data) == CORRUPT:
        raise points_nowhere(view)


COMPILED_GATHER = Gather(_gather_values, _gather_texts)
