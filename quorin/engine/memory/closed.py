"""The logs that were closed when the deployment grew, as a segment knows them: tokens of then stay good.

A segment of more partitions has applied all logs of fewer to their ends. Its header has where these ends were. One of
256 partitions has no room for all, and leaves out the oldest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quorin.engine.format.log_positions import CLOSED_DTYPE, MAX_CLOSED, first_closed
from quorin.engine.format.partition import MAX_PARTITIONS

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray
    from quorin.engine.memory.view import SegmentView


class ClosedLog(NamedTuple):
    """A closed log: up to where it is applied, and the partitions of the segment that have its rows and are held."""

    position: int
    partitions: tuple[int, ...]


def closed_log(view: SegmentView, identity: int) -> ClosedLog | None:
    """The closed log of an identity; None if the segment knows none."""
    if view.layout.partition_count == 1:
        return None
    table = view.header["closed"]
    [*found] = np.flatnonzero(table["log_identity"] == identity).tolist()
    if not found:
        return None
    number = found[0] + first_closed(view.layout.partition_count)
    before = 1 << number.bit_length() - 1
    times = view.layout.partition_count // before
    first = (number - before) * times
    held = tuple(one for one in range(first, first + times) if one in view.partitioning.held)
    return ClosedLog(int(table["position"][found[0]]), held)


def carry_closed(partitions: AnyArray, view: SegmentView, successor: SegmentView) -> None:
    """Let a successor know the closed logs that a view knows; one of more partitions also the view's own logs, up to
    the positions in its table of ``partitions``.
    """
    before, after = view.layout.partition_count, successor.layout.partition_count
    if after == 1:
        return
    known = np.zeros(2 * MAX_PARTITIONS, CLOSED_DTYPE)
    if before > 1:
        first = first_closed(before)
        known[first : first + MAX_CLOSED] = view.header["closed"]
    if after > before:
        for word in ("log_identity", "position"):
            known[word][before : 2 * before] = partitions[word][:before]
    first = first_closed(after)
    successor.header["closed"] = known[first : first + MAX_CLOSED]
