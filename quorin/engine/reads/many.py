"""The batch kernel, run until every row of a batch is read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from quorin.engine.format.abi import AHEAD, ANY_POSITION, BAD_ID, CODES, CORRUPT, MOVED, STOPPED
from quorin.engine.format.partition import partition_of
from quorin.engine.memory.parts import last_counted
from quorin.engine.reads import arguments as buffers
from quorin.engine.reads.gather import points_nowhere
from quorin.engine.rows.packed import text_addresses
from quorin.errors import CorruptSegmentError, InconsistentReadError

if TYPE_CHECKING:
    import pyarrow as pa

    from quorin.engine.arrays import Bytes, Int64s, Mask
    from quorin.engine.log.token import Token
    from quorin.engine.memory.view import SegmentView

_MAX_ROUNDS = 1000
"""Times that the kernel returns from a row that keeps changing, each after many attempts of its own, before the row
counts as damaged: a writer replaces a row at most once in the time of an attempt."""


def read_many(
    view: SegmentView,
    plan: Int64s,
    ids: pa.Array,
    out: Bytes,
    found: Mask,
    missing: float,
    first: int = 0,
    now_ns: int = 0,
    at_most: int | Token | None = None,
    fresh: Mask | None = None,
) -> bool:
    """Run the batch kernel from a row on; False if the segment has a successor, where the caller must begin again.

    The plan's age limits, if it has any, count from ``now_ns``; ``fresh`` says where none is exceeded.

    :raises InconsistentReadError: for a row that was written after the log position ``at_most``; with several
        partitions, after the position that the token ``at_most`` has of its partition's log.
    """
    from quorin.engine import kernels

    offsets, width, data = text_addresses(ids)
    fresh_at, highest = 0 if fresh is None else fresh.ctypes.data, ANY_POSITION
    if at_most is not None:
        now_ns, highest = now_ns or time.time_ns(), at_most
        if view.layout.partition_count > 1:
            counted = last_counted(view, at_most)  # It lives as long as its address is used.
            highest = counted.ctypes.data
    for _ in range(_MAX_ROUNDS):
        stop = kernels.read_many(
            plan, offsets, width, data, first, len(ids), out, found, missing, now_ns, highest, fresh_at
        )
        if stop >= 0:
            return True
        first, code = divmod(STOPPED - stop, CODES)
        if code == BAD_ID:
            raise buffers.empty_id(first)
        if code == MOVED:
            return False
        if code == AHEAD:
            raise _after(view, ids[first].as_py(), at_most)
        if code == CORRUPT:
            raise points_nowhere(view)
    raise CorruptSegmentError(f"segment {view.name!r} is damaged: the row of entity id {ids[first]} never holds still")


def _after(view: SegmentView, entity_id: str | bytes, at_most: Any) -> InconsistentReadError:
    count, where = view.layout.partition_count, f"position {at_most}"
    if count > 1:
        partition = partition_of(entity_id, count)
        where = f"position {last_counted(view, at_most)[partition]} of partition {partition}"
    name = entity_id.decode() if isinstance(entity_id, bytes) else entity_id
    return InconsistentReadError(f"segment {view.name!r}: the row of {name} is after {where}")
