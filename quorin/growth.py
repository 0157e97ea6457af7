"""Growth, compaction and takeover: build the next generation of a segment, then flip. Readers go on meanwhile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from quorin import format as fmt
from quorin import mapping
from quorin.abi import DONE, RESULT_ITEMS
from quorin.errors import CapacityExceededError, SharedMemoryError
from quorin.logging import get_logger
from quorin.view import SegmentView, segment_name

if TYPE_CHECKING:
    from quorin.schema import Schema
    from quorin.segment import Segment

DELETIONS_KEPT_NS = 7 * 24 * 3600 * 10**9
"""How long, in event time, a deletion is remembered at least: an event older than it that arrives within that time does
not bring the entity back. Older deletions are dropped when the next generation is built."""

LEAST_HEAP_BYTES = 1 << 16
_MOST_ATTEMPTS = 1000

_log = get_logger(__name__)


def grow(segment: Segment, *, rows: bool, heap_bytes: int) -> None:
    """Replace a segment that is full by one with room; the caller holds the writer lease.

    ``rows`` asks for twice the entities; ``heap_bytes`` is the room that is needed for new variable-size values. What
    updates left behind in the heap stays behind. A crash at any point leaves the old generation in force, or the new
    one.

    :raises CapacityExceededError: if memory is out, or the format's limit of rows is reached.
    :raises WriterFencedError: if another process overtook this one.
    """
    view = segment.writing_view()
    capacity = view.layout.capacity * 2 if rows else view.layout.capacity
    segment.replace(next_generation(view, capacity=capacity, heap_bytes=heap_bytes))
    _log.info("segment_grown", old=view.name, new=segment.name, capacity=capacity, rows=len(segment))


def next_generation(view: SegmentView, *, capacity: int, heap_bytes: int = 0) -> SegmentView:
    """The next generation with all of a view's rows, and room for as many bytes of new variable-size values.

    Its positions are those that the view had before the first row was copied: what is applied to the view meanwhile, by
    a writer that was frozen and wakes up, is applied again from the log.

    :raises CapacityExceededError: if memory is out, or the format's limit of rows is reached.
    """
    if capacity > fmt.MAX_ROWS // 2:
        raise CapacityExceededError(f"segment {view.name!r} cannot hold over {fmt.MAX_ROWS // 2} entities")
    partitions = view.header["partitions"].copy()
    live = max(0, int(view.header["heap_used"]) - int(view.header["heap_garbage"]))
    heap = max(LEAST_HEAP_BYTES, 2 * live + heap_bytes)
    while True:
        try:
            successor = create_successor(
                view, view.schema, capacity=capacity, max_id_bytes=view.layout.max_id_bytes, heap_bytes=heap
            )
        except SharedMemoryError as error:
            raise CapacityExceededError(f"segment {view.name!r} is full and cannot grow: {error}") from error
        if _copy_rows(view, successor):
            successor.header["partitions"] = partitions
            return successor
        mapping.unlink(successor.path)
        heap *= 2


def create_successor(
    view: SegmentView, schema: Schema, *, capacity: int, max_id_bytes: int, heap_bytes: int
) -> SegmentView:
    """An empty segment file of a view's line, with the next generation's number that is free; nothing points to it yet.

    A number may be taken by the attempt of a writer that died or came too late; such a file never comes into force.
    """
    for generation in range(view.generation + 1, view.generation + _MOST_ATTEMPTS):
        try:
            return SegmentView.create(
                view.path.parent,
                segment_name(schema.__name__, view.lineage, generation),
                schema,
                capacity=capacity,
                max_id_bytes=max_id_bytes,
                heap_bytes=heap_bytes,
            )
        except FileExistsError:
            continue
    raise CapacityExceededError(f"segment {view.name!r}: files of its next {_MOST_ATTEMPTS} generations exist already")


def _copy_rows(view: SegmentView, successor: SegmentView) -> bool:
    """Copy every row; False if the successor's heap turned out too small."""
    from quorin import kernels

    cells = [cell.offset for cell in fmt.body_layout(view.schema).cells if cell.field.is_variable]
    forget_before_ns = time.time_ns() - DELETIONS_KEPT_NS
    result = np.zeros(RESULT_ITEMS, np.int64)
    code = kernels.copy_rows(view.descriptor, successor.descriptor, np.array(cells, np.int64), forget_before_ns, result)
    return bool(code == DONE)
