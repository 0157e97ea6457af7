"""Growth and compaction: build the next generation of a segment, then flip. Readers go on meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from quorin.logging import get_logger

from quorin import format as fmt
from quorin import mapping
from quorin.abi import DONE, RESULT_ITEMS
from quorin.errors import CapacityExceededError, SharedMemoryError
from quorin.view import SegmentView, segment_name

if TYPE_CHECKING:
    from quorin.shm import Segment

_log = get_logger(__name__)
_KEEP_ALL_DELETIONS = -(2**63)


def grow(segment: Segment, *, rows: bool, heap_bytes: int) -> None:
    """Replace a segment that is full by one with room; this process must hold the writer lease.

    ``rows`` asks for twice the entities (unless deleted ones make up half); ``heap_bytes`` is the room that is needed
    for new variable-size values. What updates left behind in the heap stays behind. A crash at any point leaves the old
    segment in force, or the new one.

    :raises CapacityExceededError: if memory is out, or the format's limit of rows is reached.
    """
    view = segment.current_view()
    header = view.header
    capacity = view.layout.capacity * 2 if rows else view.layout.capacity
    if capacity > fmt.MAX_ROWS // 2:
        raise CapacityExceededError(f"segment {view.name!r} cannot hold over {fmt.MAX_ROWS // 2} entities")
    live_heap = max(0, int(header["heap_used"]) - int(header["heap_garbage"]))
    heap = max(
        view.layout.heap_bytes if live_heap * 4 < view.layout.heap_bytes else 0, live_heap * 2 + heap_bytes, 1 << 16
    )
    while True:
        successor = _build(view, capacity=capacity, heap_bytes=heap)
        if successor is not None:
            break
        heap *= 2
    _log.info("segment_grown", old=view.name, new=successor.name, capacity=capacity, heap_bytes=heap, rows=len(segment))
    segment.replace(successor)


def _build(view: SegmentView, *, capacity: int, heap_bytes: int) -> SegmentView | None:
    """The next generation with all rows copied; None if its heap turned out too small."""
    from quorin import kernels

    try:
        successor = SegmentView.create(
            view.path.parent,
            segment_name(view.schema.__name__, view.lineage, view.generation + 1),
            view.schema,
            capacity=capacity,
            max_id_bytes=view.layout.max_id_bytes,
            heap_bytes=heap_bytes,
        )
    except SharedMemoryError as error:
        raise CapacityExceededError(f"segment {view.name!r} is full and cannot grow: {error}") from error
    cells = [cell.offset for cell in fmt.body_layout(view.schema).cells if cell.field.is_variable]
    result = np.zeros(RESULT_ITEMS, np.int64)
    code = kernels.copy_rows(
        view.descriptor, successor.descriptor, np.array(cells, np.int64), _KEEP_ALL_DELETIONS, result
    )
    if code != DONE:
        mapping.unlink(successor.path)
        return None
    successor.header["partitions"] = view.header["partitions"]
    return successor
