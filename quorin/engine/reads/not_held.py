"""Ids whose partitions this node does not hold: they are not found here, and may have a row on another node."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quorin.engine.format.partition import partition_of
from quorin.engine.memory.filling import is_hidden, shown
from quorin.engine.reads.arguments import mask_out
from quorin.engine.rows.intake import id_array
from quorin.engine.rows.partitions import partitions_of
from quorin.errors import NotHeldError

if TYPE_CHECKING:
    from quorin.engine.arrays import Mask
    from quorin.engine.format.partition import Partitioning
    from quorin.engine.memory.view import SegmentView
    from quorin.shm import Segment

MissingPartitions = Literal["error", "mask"]
"""What a read does with such ids: raise, or treat them as not found and report which they are."""


def check_choice(missing_partitions: object) -> None:
    """:raises ValueError: for a ``missing_partitions`` other than ``"error"`` and ``"mask"``."""
    if missing_partitions not in ("error", "mask"):
        raise ValueError(f"missing_partitions: expected 'error' or 'mask', got {missing_partitions!r}")


def not_held_of(view: SegmentView, entity_ids: Any, found: Mask) -> Mask | None:
    """Which entities of a batch are not found because their partitions are not held, or are not filled yet; None if
    there are none.

    A batch of which all are found costs nothing, and none does where all partitions are held.
    """
    if not view.is_partial or found.all():
        return None
    partitions = partitions_of(id_array(entity_ids), view.partitioning.count)
    held = _held(view.partitioning)
    if view.is_filling:
        held = shown(held, view.header["partitions"])
    not_held: Mask = ~(held[partitions] | found)
    return not_held if not_held.any() else None


@lru_cache(maxsize=64)
def _held(partitioning: Partitioning) -> Mask:
    is_held = np.zeros(partitioning.count, np.bool_)
    is_held[list(partitioning.held)] = True
    return is_held


def note_not_held(
    segment: Segment, view: SegmentView, ids: Any, found: Mask, missing_partitions: MissingPartitions, out: Mask | None
) -> None:
    """Raise if an entity's partition is not held; with ``"mask"`` fill ``out``, if it is passed, with which those are.

    :raises NotHeldError: as :func:`check_held`. :raises ValueError: as :func:`check_choice`.
    :raises InvalidBufferError: for an ``out`` that does not fit.
    """
    check_choice(missing_partitions)
    if missing_partitions == "mask" and out is None:
        return
    not_held = not_held_of(view, ids, found)
    if missing_partitions == "error":
        check_held(segment, view, ids, not_held)
    if mask_out("not_held_mask", out, len(found)) is not None:
        out[:] = False if not_held is None else not_held  # type: ignore[index]


def check_held(segment: Segment, view: SegmentView, entity_ids: Any, not_held: Mask | None) -> None:
    """:raises NotHeldError: for the first entity that ``not_held`` marks, naming the nodes that hold it."""
    if not_held is not None:
        first = id_array(entity_ids).slice(int(not_held.argmax()), 1)
        raise error_for(segment, view, int(partitions_of(first, view.partitioning.count)[0]))


def check_one_held(segment: Segment, view: SegmentView, key: bytes) -> None:
    """:raises NotHeldError: if the partition of an entity that was not found is not held, or is not filled yet."""
    if view.is_partial:
        partition = partition_of(key, view.partitioning.count)
        word = int(view.header["partitions"]["confirmed_ns"][partition])
        if partition not in view.partitioning.held or is_hidden(word):
            raise error_for(segment, view, partition)


def error_for(segment: Segment, view: SegmentView, partition: int) -> NotHeldError:
    """The error for a partition that is not held, naming the nodes that hold it, as far as they are known."""
    from quorin.engine.ops.holders import holders

    node = segment.node
    known = {} if node is None else holders(node, view.partitioning.count)
    names = tuple(url for holder in known.get(partition, ()) for url in holder.urls or (f"node {holder.node}",))
    return NotHeldError(view.schema.__name__, partition, names)
