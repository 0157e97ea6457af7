"""The generations of a segment: the first one, empty, and the next one with the rows copied into it.

Nothing here puts a generation in force; :mod:`quorin.engine.memory.segment` does that with a flip.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import DONE, R_APPLIED, RESULT_ITEMS
from quorin.engine.format.name import SegmentName
from quorin.engine.format.partition import hash_shift
from quorin.engine.memory import file as mapping
from quorin.engine.memory.access import Access
from quorin.engine.memory.closed import carry_closed
from quorin.engine.memory.filling import FILLING
from quorin.engine.memory.kept import with_room
from quorin.engine.memory.view import SegmentView
from quorin.engine.rows.compatibility import fits
from quorin.errors import CapacityExceededError, PartitionCountError, SharedMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quorin.engine.arrays import AnyArray, Int64s, Mask
    from quorin.engine.format.partition import Partitioning
    from quorin.schema import Schema

DELETIONS_KEPT_NS = 7 * 24 * 3600 * 10**9
"""How long, in event time, a deletion is remembered at least: an event older than it that arrives within that time does
not bring the entity back. Older deletions are dropped when the next generation is built."""

MIN_HEAP_BYTES = 1 << 16
EARLIEST_NS = -(2**63)
_HEAP_BYTES_PER_VALUE = 32
_MAX_ATTEMPTS = 1000
_SLOTS_AT_ONCE = 1 << 17


class Sizes(TypedDict):
    """The sizes of a new segment."""

    capacity: int
    max_id_bytes: int
    heap_bytes: int
    prefault_rows: int | None


def first_sizes(schema: Schema, capacity: int, max_id_bytes: int, prefault_rows: int | None) -> Sizes:
    """The sizes of a new segment. :raises ValueError: for a number out of range."""
    _check_range("capacity", capacity, 1, fmt.MAX_ROWS // 2)
    _check_range("max_id_bytes", max_id_bytes, 1, fmt.MAX_ID_BYTES)
    if prefault_rows is not None:
        _check_range("prefault_rows", prefault_rows, 0, fmt.MAX_ROWS)
    return Sizes(
        capacity=capacity,
        max_id_bytes=max_id_bytes,
        heap_bytes=first_heap_bytes(schema, capacity),
        prefault_rows=prefault_rows,
    )


def first_generation(
    directory: Path, schema: Schema, owner: int, group: int | None, partitioning: Partitioning, sizes: Sizes
) -> SegmentView:
    """A new, empty segment file of a line of its own, readable for a group."""
    name, access = SegmentName.first(schema.__name__), Access.for_group(group)
    return SegmentView.create(directory, name, schema, owner=owner, access=access, partitioning=partitioning, **sizes)


def first_heap_bytes(schema: Schema, capacity: int) -> int:
    """An estimate that growth corrects: a short value in every variable-size field."""
    return MIN_HEAP_BYTES + _HEAP_BYTES_PER_VALUE * capacity * sum(field.is_variable for field in schema.fields)


def next_generation(
    view: SegmentView,
    schema: Schema,
    *,
    capacity: int,
    heap_bytes: int = 0,
    keeps_deletions: bool = False,
    copied: Callable[[int], None] | None = None,
    partitioning: Partitioning | None = None,
) -> SegmentView:
    """The next generation with all of a view's rows, and room for as many bytes of new variable-size values.

    ``schema`` is the view's own or one that can follow it. With ``keeps_deletions`` none is forgotten, however old.
    ``copied`` is told now and then how many rows are. With a ``partitioning`` it has the rows of the partitions that
    both hold, and of others only which log it knows.

    Its positions are those that the view had before the first row was copied: what is applied to the view meanwhile, by
    a writer that was frozen and wakes up, is applied again from the log.

    :raises CapacityExceededError: if memory is out, or the format's limit of rows is reached.
    """
    if capacity > fmt.MAX_ROWS // 2:
        raise CapacityExceededError(f"segment {view.name!r} cannot hold over {fmt.MAX_ROWS // 2} entities")
    partitions = view.header["partitions"].copy()
    heap = heap_bytes_for(view, heap_bytes)
    while True:
        try:
            successor = create_successor(
                view,
                schema,
                capacity=capacity,
                max_id_bytes=view.layout.max_id_bytes,
                heap_bytes=heap,
                partitioning=partitioning,
            )
        except SharedMemoryError as error:
            raise CapacityExceededError(f"segment {view.name!r} is full and cannot grow: {error}") from error
        try:
            forget_before_ns = EARLIEST_NS if keeps_deletions else time.time_ns() - DELETIONS_KEPT_NS
            forgotten = copy_rows(view, successor, forget_before_ns=forget_before_ns, copied=copied)
        except BaseException:
            mapping.unlink(successor.path)
            raise
        if forgotten is not None:
            copy_partitions(partitions, view, successor, forgotten)
            return successor
        mapping.unlink(successor.path)
        heap *= 2


def heap_bytes_for(view: SegmentView, more: int = 0) -> int:
    """The heap that a view's next generation begins with: twice what is alive, and ``more``."""
    live = max(0, int(view.header["heap_used"]) - int(view.header["heap_garbage"]))
    return max(MIN_HEAP_BYTES, 2 * live + more)


def create_successor(
    view: SegmentView,
    schema: Schema,
    *,
    capacity: int,
    max_id_bytes: int,
    heap_bytes: int,
    prefault_rows: int | None = None,
    partitioning: Partitioning | None = None,
) -> SegmentView:
    """An empty segment file of a view's line, with the next generation's number that is free; nothing points to it yet.
    It holds the view's partitions, unless told otherwise.

    Its access is that of ``view``'s file: a writer without the setting ``shm_group`` locks nobody out.

    A number may be taken by the attempt of a writer that died or came too late; such a file never comes into force.
    Where there is no room, kept generations of the deployment go first.
    """
    access, owner, directory = Access.of(view.path), int(view.header["owner"]), view.path.parent
    for generation in range(view.generation + 1, view.generation + _MAX_ATTEMPTS):
        create = partial(
            SegmentView.create,
            directory,
            view.segment_name.at(generation),
            schema,
            capacity=capacity,
            max_id_bytes=max_id_bytes,
            heap_bytes=heap_bytes,
            owner=owner,
            access=access,
            prefault_rows=prefault_rows,
            partitioning=view.partitioning if partitioning is None else partitioning,
        )
        with suppress(FileExistsError):
            return with_room(directory, owner, create)
    raise CapacityExceededError(f"segment {view.name!r}: files of its next {_MAX_ATTEMPTS} generations exist already")


def copy_rows(
    view: SegmentView,
    successor: SegmentView,
    *,
    forget_before_ns: int = EARLIEST_NS,
    copied: Callable[[int], None] | None = None,
) -> Int64s | None:
    """Copy every row of the partitions that both hold, each one whole version of it, into an empty segment; None if
    that has too little heap.

    Deletions older than ``forget_before_ns`` are left out; returns the last log position of these for each partition, 0
    for none. A writer of ``view`` may go on meanwhile.
    """
    from quorin.engine import kernels

    plan = _carry_plan(view.stored, successor.stored)
    result = np.zeros(RESULT_ITEMS, np.int64)
    count, slots = successor.layout.partition_count, view.layout.slot_count
    forgotten, kept = np.zeros(count, np.int64), _kept(view, successor)
    for first in range(0, slots, _SLOTS_AT_ONCE):
        last = min(first + _SLOTS_AT_ONCE, slots)
        places = first, last, hash_shift(count)
        code = kernels.copy_rows(
            view.descriptor, successor.descriptor, plan, forget_before_ns, *places, kept, forgotten, result
        )
        if code != DONE:
            return None
        if copied is not None:
            copied(int(result[R_APPLIED]))
    return forgotten


def copy_partitions(partitions: AnyArray, view: SegmentView, successor: SegmentView, forgotten: Int64s) -> None:
    """Fill a successor's table of partitions: what a view's table said before its rows were copied, and what was
    ``forgotten`` on the way. In one of more partitions each has what the one had that it was a part of, but a position.
    """
    table = successor.header["partitions"].copy()
    count, before = successor.partitioning.count, view.partitioning.count
    both = view.partitioning.at(count).held & successor.partitioning.held
    for number in range(count):
        table[number] = partitions[number * before // count]
        table["forgotten"][number] = max(int(table["forgotten"][number]), int(forgotten[number]))
        if count != before:
            table["position"][number] = table["log_identity"][number] = 0
        if number not in both:
            for word in ("position", "confirmed_ns", "forgotten"):
                table[word][number] = 0
            if number in successor.partitioning.held:
                table["confirmed_ns"][number] = FILLING
    successor.header["partitions"] = table
    carry_closed(partitions, view, successor)


def _kept(view: SegmentView, successor: SegmentView) -> Mask:
    """The partitions whose rows a successor gets, as a mask of all; of one item if it gets all rows.

    :raises PartitionCountError: if the successor is of fewer partitions.
    """
    theirs = successor.partitioning
    if theirs.count < view.partitioning.count:
        raise PartitionCountError(
            f"{view.name} is one of {view.partitioning.count} partitions, expected at most {theirs.count}"
        )
    ours = view.partitioning.at(theirs.count)
    if ours.held <= theirs.held:
        return np.ones(1, np.bool_)
    return np.array([number in theirs.held for number in range(theirs.count)])


def _carry_plan(old: Schema, new: Schema) -> Int64s:
    """What becomes of each field, as :mod:`quorin.engine.format.abi` lays it out. Neighbours on both sides are copied
    in one go.
    """
    before, after = fmt.body_layout(old), fmt.body_layout(new)
    stored = {cell.field.name: cell for cell in before.cells}
    spans: list[list[int]] = []
    bits: list[tuple[int, ...]] = []
    cells: list[tuple[int, ...]] = []
    flags = 0
    for target in sorted(after.cells, key=lambda cell: cell.offset):
        source = stored.get(target.field.name)
        if source is None or not fits(target.field, source.field):
            flags |= 0 if target.field.is_variable else fmt.FLAG_HAS_NULLS
            continue
        bits.append((source.null_byte, source.null_mask, target.null_byte, target.null_mask))
        codes = int(source.field.dtype), int(target.field.dtype)
        if target.field.is_variable:
            cells.append((source.offset, target.offset, target.field.dtype.item_size, *codes))
        elif codes[0] == codes[1]:
            _add_span(spans, source.offset, target.offset, target.byte_count)
        else:
            spans.append([source.offset, target.offset, target.field.element_count, *codes])
    if before == after:
        bits = []
        _add_span(spans, before.bitmap_offset, after.bitmap_offset, after.bitmap_bytes)
    if before.rings and after.rings:
        _add_span(spans, before.ring_head, after.ring_head, fmt.RING_HEAD.itemsize)
        rings = {ring.cell.field.name: ring for ring in before.rings}
        for ring in after.rings:
            if (old_ring := rings.get(ring.cell.field.name)) is not None:
                _add_ring(spans, old_ring, ring)
    head = [len(spans), len(bits), len(cells), flags]
    return np.concatenate([np.array(part, np.int64).ravel() for part in (head, spans, bits, cells)])


def _add_ring(spans: list[list[int]], source: fmt.Ring, target: fmt.Ring) -> None:
    """The last values of a field, which may be widened and have room for more."""
    count, word = source.capacity, fmt.WORD_BYTES
    codes = int(source.cell.field.dtype), int(target.cell.field.dtype)
    _add_span(spans, source.count, target.count, word)
    _add_span(spans, source.times, target.times, word * count)
    _add_span(spans, source.positions, target.positions, word * count)
    if source.ties >= 0 and target.ties >= 0:
        _add_span(spans, source.ties, target.ties, word * count)
    if codes[0] == codes[1]:
        _add_span(spans, source.values, target.values, source.cell.byte_count * count)
    else:
        spans.append([source.values, target.values, count, *codes])
    _add_span(spans, source.validity, target.validity, count)


def _add_span(spans: list[list[int]], source: int, target: int, size: int) -> None:
    """Bytes that are copied as they are, joined to the last span if they go on where that ends."""
    last = spans[-1] if spans else None
    if last and last[3] == last[4] == 0 and (last[0] + last[2], last[1] + last[2]) == (source, target):
        last[2] += size
    else:
        spans.append([source, target, size, 0, 0])


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
