"""What a segment has stored under a key, read in Python: rows of entities, and what deletions left behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.reads.not_held import check_one_held
from quorin.layout import find_row

if TYPE_CHECKING:
    from quorin.engine.arrays import Bytes
    from quorin.engine.memory.view import SegmentView
    from quorin.shm import Segment


@dataclass(frozen=True, slots=True)
class Stored:
    """The write in force for an entity: its event time in ns, its log position, and whether it is a deletion."""

    event_time_ns: int
    position: int
    deleted: bool

    def overrules(self, position: int) -> bool:
        """Whether it won against the write at a position of the same log, which is applied."""
        return self.position < position


def stored_write(segment: Segment, entity_id: str) -> Stored | None:
    """The write that is in force for an entity; None if the segment never had one.

    :raises NotHeldError: if this node does not hold the entity's partition.
    """
    view, key = segment.current_view(), entity_id.encode()
    row = copy_stored(view, key)
    if row is None:
        check_one_held(segment, view, key)
        return None
    header = header_of(row)
    return Stored(int(header["event_time_ns"]), int(header["position"]), is_deleted(row))


def copy_stored(view: SegmentView, key: bytes) -> Bytes | None:
    """A whole version of a key's row, also of a deleted entity; None if the key was never written."""
    memory, stride = view.mapping.memory, view.layout.row_stride
    while True:
        found = find_row(view, key)
        if found is None:
            return None
        slot, start = found
        word = memory[slot : slot + 8].view(np.uint64)[0]
        stamp = memory[start : start + 8].view(np.uint64)[0]
        row = memory[start : start + stride].copy()
        unchanged = (
            stamp == memory[start : start + 8].view(np.uint64)[0] and word == memory[slot : slot + 8].view(np.uint64)[0]
        )
        if unchanged and int(stamp) % 2 == 0 and find_row(view, key) == found:
            return row


def header_of(row: Bytes) -> Any:
    """The header of a row's copy."""
    return row[: fmt.KEY_OFFSET].view(fmt.ROW_HEADER_DTYPE)[0]


def is_deleted(row: Bytes) -> bool:
    """Whether a row's copy is what a deletion left."""
    return bool(int(header_of(row)["flags"]) & fmt.FLAG_DELETED)
