"""A segment that is built beside the serving one, in a line of its own, and then takes its place in one flip.

Until then nothing points to it: growth and upgrades of the serving segment do not touch it, and it grows by itself.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from quorin.engine.format import segment as fmt
from quorin.engine.format.name import SegmentName
from quorin.engine.memory import file as mapping
from quorin.engine.memory.access import Access
from quorin.engine.memory.closed import carry_closed
from quorin.engine.memory.generations import heap_bytes_for
from quorin.engine.memory.growth import evolve
from quorin.engine.memory.header import rename
from quorin.engine.memory.kept import with_room
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.view import SegmentView
from quorin.errors import CapacityExceededError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quorin.schema import Schema

_EPOCH = fmt.header_word("epoch")
_MAX_ATTEMPTS = 1000


class Staged:
    """The staged segment, which this process writes."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._is_over = False
        segment.acquire_writer_lease()

    @classmethod
    def beside(cls, serving: Segment, schema: Schema) -> Staged:
        """An empty one with the serving segment's sizes, for the users who may read that. Kept generations make room.

        :raises SharedMemoryError: if there is no room for it.
        """
        view = serving.current_view()
        owner, directory = int(view.header["owner"]), view.path.parent
        create = partial(
            SegmentView.create,
            directory,
            SegmentName.first(schema.__name__),
            schema,
            capacity=view.layout.capacity,
            max_id_bytes=view.layout.max_id_bytes,
            heap_bytes=heap_bytes_for(view),
            owner=owner,
            access=Access.of(view.path),
            prefault_rows=int(view.header["entity_count"]),
            partitioning=view.partitioning,
        )
        return cls(Segment(with_room(directory, owner, create), None, read_only=False))

    def upgrade(self, schema: Schema) -> None:
        """Carry its rows over to a newer version of its schema, if it is not of that version."""
        if self.segment.stored_schema is not schema:
            evolve(self.segment, schema)

    def put_in_force(self, serving: Segment, positions: Mapping[int, int]) -> None:
        """Replace the serving segment, whose lease is held, in one flip, with these as the applied positions, one of
        each partition that is held.

        A crash at any point leaves the old generation in force, or the new one with its positions; the file of the
        other is reclaimed by the watchdog.

        :raises WriterFencedError: if another process overtook this one; nothing has changed then, and the staged
            segment is removed.
        """
        old, staged = serving.writing_view(), self.segment.writing_view()
        partitions = old.header["partitions"].copy()
        for partition, position in positions.items():
            partitions["position"][partition] = position
            # What is gone has left no deletion, so changes are known from here on only.
            partitions["forgotten"][partition] = position
        staged.header["partitions"] = partitions
        carry_closed(partitions, old, staged)
        self.segment.close()
        self._is_over = True
        try:
            successor = _joined(old, staged)
        except BaseException:
            mapping.unlink(staged.path)
            raise
        serving.replace(successor, keeping="replace")

    def discard(self) -> None:
        """Remove it. Does nothing once :meth:`put_in_force` has closed it."""
        if not self._is_over:
            view = self.segment.current_view()
            self.segment.close()
            mapping.unlink(view.path)


def _joined(serving: SegmentView, staged: SegmentView) -> SegmentView:
    """A finished segment under the next free name of the serving one's line; nobody has it open for writing."""
    # It was written under a lease, but was never in force: only an epoch above zero says so of a generation.
    staged.words[_EPOCH] = 0
    directory = serving.path.parent
    for generation in range(serving.generation + 1, serving.generation + _MAX_ATTEMPTS):
        name = serving.segment_name.at(generation)
        rename(staged.mapping.memory, name, int(serving.header["owner"]))
        with suppress(FileExistsError):
            staged.mapping.rename(directory / str(name))
            return SegmentView(staged.mapping, staged.stored, staged.layout)
    raise CapacityExceededError(
        f"segment {serving.name!r}: files of its next {_MAX_ATTEMPTS} generations exist already"
    )
