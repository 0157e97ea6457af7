"""How far a segment is in one log: its only log, or that of one partition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from quorin.shm import Segment


class LogPosition(Protocol):
    """A position in one log, in a segment's header."""

    @property
    def position(self) -> int:
        """The log position up to which everything is applied; 0 before the first."""

    @property
    def log_identity(self) -> int:
        """Which log the position belongs to; 0 before the first."""

    @property
    def forgotten(self) -> int:
        """The position at which a load replaced the rows, or of the last deletion that growth has forgotten; 0 for
        none.
        """

    def commit_position(self, position: int, log_identity: int) -> None:
        """Publish that everything up to ``position`` of a log is applied; call it after the rows are."""

    def caught_up(self) -> None:
        """All rows are there that the log had when the segment began to follow it."""

    def confirm(self, at_ns: int) -> None:
        """Record that at a time (ns since the epoch) the log had nothing that this segment lacks."""


def log_position_of(segment: Segment, partition: int | None) -> LogPosition:
    """The progress of a segment in the log of a partition; None is the only log of a deployment with one partition."""
    return segment if partition is None else segment.part(partition)
