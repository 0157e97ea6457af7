"""Up to where a segment shows the log: its one log, or, of a deployment with several partitions, the log of each."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.log_positions import PARTITION_DTYPE
from quorin.engine.log.token import Token
from quorin.engine.memory.filling import FILLING, filled_now, is_hidden
from quorin.errors import NotHeldError, PartitionedError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from quorin.engine.arrays import Int64s
    from quorin.engine.format.partition import Partitioning
    from quorin.engine.memory.node import Node
    from quorin.engine.memory.view import SegmentView
    from quorin.engine.memory.writer import Writer

_LOG_IDENTITY, _POSITION, _FORGOTTEN = (
    fmt.partition_offset(name) for name in ("log_identity", "position", "forgotten")
)
_CONFIRMED = fmt.partition_offset("confirmed_ns") // fmt.WORD_BYTES
_PART_BYTES = PARTITION_DTYPE.itemsize
_PART_WORDS = _PART_BYTES // fmt.WORD_BYTES
_CLOCK_STEP_NS = 1_000_000_000


class OpenSegment(Protocol):
    """What :class:`Parted` needs of the segment."""

    _writer: Writer

    @property
    def writing(self) -> threading.RLock:
        """The lock of the threads that write."""

    @property
    def partitioning(self) -> Partitioning:
        """The partitions that it holds."""

    def current_view(self) -> SegmentView:
        """The newest generation."""

    def writing_view(self) -> SegmentView:
        """The generation to write to."""


class Parted:
    """The positions of an open segment, one for each partition of the deployment that it holds."""

    __slots__ = ()

    @property
    def node(self: OpenSegment) -> Node | None:
        """The node whose shared memory the segment is in; None for one that no registry opened."""
        return self._writer.node

    @property
    def partitioning(self: OpenSegment) -> Partitioning:
        """How many partitions the deployment has, and which of them this segment holds; all of one by default."""
        return self.current_view().partitioning

    @property
    def position(self: OpenSegment) -> int:
        """The log position up to which everything is applied; 0 before the first. Of several partitions, the highest of
        their positions, to show it: what is applied is :meth:`applied`.
        """
        view = self.current_view()
        if view.layout.partition_count == 1:
            return _load_acquire(view.mapping.address + _POSITION)
        return max(position for _, position in positions_in(view))

    @property
    def log_identity(self: OpenSegment) -> int:
        """Which log :attr:`position` belongs to; 0 before the first, and with several partitions, which have a log
        each. Read it before the position: then the position is one of this log, or of a later one.
        """
        view = self.current_view()
        return _load_acquire(view.mapping.address + _LOG_IDENTITY) if view.layout.partition_count == 1 else 0

    @property
    def forgotten(self: OpenSegment) -> int:
        """The last position of a deletion that growth has forgotten, or of a load that has replaced the rows; 0 for
        none. Of several partitions, the highest of theirs.
        """
        return max(forgotten_in(self.current_view()))

    def part(self: OpenSegment, partition: int) -> HeldPartition:
        """One partition of those that are held.

        :raises NotHeldError: for another partition.
        """
        view = self.current_view()
        if partition not in view.partitioning.held:
            raise NotHeldError(view.schema.__name__, partition)
        return HeldPartition(self, self._writer, partition)

    def parts(self: OpenSegment) -> Iterator[HeldPartition]:
        """The partitions that are held, in order."""
        return (HeldPartition(self, self._writer, partition) for partition in sorted(self.partitioning.held))

    def applied(self: OpenSegment) -> Token:
        """What is applied, as a token: a position of each held partition's log, but of those that nothing is applied
        of. A read that waits for it shows at least as much, on any node.
        """
        return applied_in(self.current_view())

    def commit_position(self: OpenSegment, position: int, log_identity: int) -> None:
        """Publish that everything up to ``position`` of a log is applied; call it after the rows are.

        A crash before this call loses nothing: the next consumer applies the entry again, to the same effect.

        :raises PartitionedError: with several partitions, whose :meth:`part` has the same method.
        """
        with self.writing:
            view = self.writing_view()
            check_one_partition(view, "commit_position")
            self._writer.commit_position(position, log_identity, view)

    def confirm(self: OpenSegment, at_ns: int) -> None:
        """Record that at a time (ns since the epoch) the log had nothing that this segment lacks.

        :raises PartitionedError: with several partitions, whose :meth:`part` has the same method.
        """
        with self.writing:
            view = self.writing_view()
            check_one_partition(view, "confirm")
            view.words[_CONFIRMED] = at_ns

    def caught_up(self: OpenSegment) -> None:
        """Nothing changes: only one of several partitions is given to a segment later."""

    def confirmed_age_seconds(self: OpenSegment) -> float:
        """Seconds since the log is known to have had nothing that this segment lacks; infinity if that is not known.
        A consumer that reaches the log renews it several times a second. Of several partitions, the oldest of theirs.
        """
        view = self.current_view()
        if view.layout.partition_count == 1:
            return _age_seconds(view.words[_CONFIRMED])
        of_all = view.words[_CONFIRMED : _CONFIRMED + _PART_WORDS * view.layout.partition_count : _PART_WORDS].tolist()
        confirmed = [of_all[partition] for partition in view.partitioning.held]
        # One that is too far in the future is no age, too.
        return max(_age_seconds(min(confirmed)), _age_seconds(max(confirmed)))

    def know_log(self: OpenSegment, partition: int, log_identity: int) -> None:
        """Record which log a partition has that is not held, so that reads recognize positions of it in tokens. Does
        nothing for one that is held: its own position names its log.
        """
        with self.writing:
            view = self.writing_view()
            if partition not in view.partitioning.held and 0 <= partition < view.layout.partition_count:
                self._writer.commit_position(0, log_identity, view, partition)


def check_one_partition(view: SegmentView, tried: str) -> None:
    """:raises PartitionedError: for a segment of several partitions, naming what was tried with it."""
    if view.layout.partition_count > 1:
        raise PartitionedError(
            f"{tried}: expected a segment of one partition, {view.name!r} is of {view.layout.partition_count}, each "
            "with a position of its own"
        )


class HeldPartition:
    """One partition of an open segment, in its current generation."""

    __slots__ = ("_segment", "_writer", "partition")

    def __init__(self, segment: OpenSegment, writer: Writer, partition: int) -> None:
        self._segment = segment
        self._writer = writer
        self.partition = partition

    def __repr__(self) -> str:
        return f"<HeldPartition {self.partition} of {self._segment!r} at {self.position}>"

    @property
    def position(self) -> int:
        """The position of the partition's log up to which everything is applied; 0 before the first."""
        return self._load(_POSITION)

    @property
    def log_identity(self) -> int:
        """Which log :attr:`position` belongs to; 0 before the first. Read it before the position."""
        return self._load(_LOG_IDENTITY)

    @property
    def forgotten(self) -> int:
        """The last position of a deletion that growth has forgotten, or of a load that has replaced the rows."""
        return self._load(_FORGOTTEN)

    def commit_position(self, position: int, log_identity: int) -> None:
        """Publish that everything up to ``position`` of the partition's log is applied; as for the segment."""
        segment = self._segment
        with segment.writing:
            self._writer.commit_position(position, log_identity, segment.writing_view(), self.partition)

    def confirm(self, at_ns: int) -> None:
        """Record that at a time (ns since the epoch) the partition's log had nothing that this segment lacks. Does
        nothing while reads do not answer for the partition.
        """
        with self._segment.writing:
            words = self._segment.writing_view().header["partitions"]["confirmed_ns"]
            if not is_hidden(int(words[self.partition])):
                words[self.partition] = at_ns

    def caught_up(self) -> None:
        """All rows are there that the partition's log had when this segment began to follow it."""
        with self._segment.writing:
            words = self._segment.writing_view().header["partitions"]["confirmed_ns"]
            if words[self.partition] == FILLING:
                words[self.partition] = filled_now()

    def confirmed_age_seconds(self) -> float:
        """Seconds since the partition's log is known to have had nothing that this segment lacks; infinity if never."""
        return _age_seconds(self._segment.current_view().words[_CONFIRMED + _PART_WORDS * self.partition])

    def _load(self, offset: int) -> int:
        return _load_acquire(self._segment.current_view().mapping.address + offset + _PART_BYTES * self.partition)


def applied_in(view: SegmentView) -> Token:
    """:meth:`Parted.applied` of one generation."""
    return Token(*(part for part in positions_in(view) if all(part)))


def through_of(view: SegmentView) -> int | Token:
    """The position up to which a generation has all; of several partitions, a token."""
    if view.layout.partition_count > 1:
        return applied_in(view)
    [(_, position)] = positions_in(view)
    return position


def last_counted(view: SegmentView, moment: int | Token | str) -> Int64s:
    """The last position of each partition's log whose rows count at a token; 0 where the token has no part for the log.

    :raises TokenError: for a position that is no token, and does not say of which log it is.
    """
    parts = dict(Token.of(moment).parts)
    identities = view.header["partitions"]["log_identity"][: view.layout.partition_count].tolist()
    return np.array([parts.get(identity, 0) for identity in identities], np.int64)


def positions_in(view: SegmentView) -> list[tuple[int, int]]:
    """The log's identity and the position of each partition that is held, in order. The identity was read first: the
    position may be of a later log.
    """
    return [(_load_acquire(part + _LOG_IDENTITY), _load_acquire(part + _POSITION)) for part in _parts_of(view)]


def forgotten_in(view: SegmentView) -> list[int]:
    """For each partition that is held, in order, the last position of a deletion that growth has forgotten, or of a
    load that has replaced the rows.
    """
    return [_load_acquire(part + _FORGOTTEN) for part in _parts_of(view)]


def _parts_of(view: SegmentView) -> list[int]:
    """The address of the header's part of each partition that is held, in order."""
    address = view.mapping.address
    if view.layout.partition_count == 1:
        return [address]
    return [address + _PART_BYTES * partition for partition in sorted(view.partitioning.held)]


def _age_seconds(confirmed_ns: int) -> float:
    age = time.time_ns() - confirmed_ns
    return age / 1e9 if confirmed_ns and age > -_CLOCK_STEP_NS else math.inf


def _load_acquire(address: int) -> int:
    """Stands in for the kernel until the first use has loaded it."""
    global _load_acquire
    from quorin.engine.kernels import load_acquire as _load_acquire

    return _load_acquire(address)
