"""The steps of a growth, without I/O: what the control plane and the logs say, and what to do next.

A growth closes the log of each partition, begins two successors for it, and then makes their number the deployment's,
in one exchange of the control plane. Every step changes nothing when it is done again, so any process may take the next
one, also at the same time as others: the command, a second one, or a producer that found a log closed.

::

    settled ── begin ──► closing ── commit ──► settled, with twice as many
                            │
                            └── abort ──► ending ── reopened ──► settled, as before

The exchange decides between commit and abort. A growth has a number, and a log refuses to be closed for one that was
ended: a process that sleeps between its look and its step changes nothing when it wakes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quorin.engine.format.growth import Closed, Growth, State

if TYPE_CHECKING:
    from collections.abc import Mapping

LogName = tuple[str, int]
"""A log of the old or the new count: its stream key and partition."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The logs of a growth. ``ends`` has the last position of each old log, None while it takes appends; ``begun`` the
    position behind which each new log begins, 0 if it was not begun; ``identities`` those of the old logs.
    """

    ends: Mapping[LogName, int | None]
    begun: Mapping[LogName, int]
    identities: Mapping[LogName, int]

    @property
    def end(self) -> int:
        """The highest position of the old logs."""
        return max((end for end in self.ends.values() if end is not None), default=0)

    @property
    def closed(self) -> tuple[Closed, ...]:
        """The old logs that are closed, with their ends."""
        ended = ((name, end) for name, end in self.ends.items() if end is not None)
        return tuple(Closed(*name, self.identities[name], end) for name, end in ended)


@dataclass(frozen=True, slots=True)
class Close:
    """Close an old log, for the growth of this number."""

    log: LogName
    number: int


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a new log behind a position."""

    log: LogName
    behind: int


@dataclass(frozen=True, slots=True)
class Reopen:
    """Let an old log take appends again, for the growth of this number."""

    log: LogName
    number: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """Store a growth in place of the one that was seen; with a ``count``, the number of partitions in the same step."""

    growth: Growth
    count: int | None = None


Step = Close | Begin | Reopen | Exchange


def is_complete(seen: Seen) -> bool:
    """Whether all old logs are closed, and all new ones begin behind them."""
    is_closed = all(end is not None for end in seen.ends.values())
    return is_closed and all(behind > seen.end for behind in seen.begun.values())


def next_steps(growth: Growth, seen: Seen) -> list[Step]:
    """What comes next, in this order, to finish the growth, or to undo one that is being ended; then look again.

    Empty if there is nothing to do.
    """
    if growth.state is State.settled:
        return []
    if growth.state is State.ending:
        # Those that are open too: a process that sleeps may be about to close them.
        reopened = [Reopen(log, growth.number) for log in seen.ends]
        return [*reopened, Exchange(replace(growth, state=State.settled))]
    still_open = [log for log, end in seen.ends.items() if end is None]
    if still_open:
        return [Close(log, growth.number) for log in still_open]
    # Behind all old logs, not only its own: then a position alone says which count of partitions it is of.
    behind = seen.end + 1
    missing = [log for log, begins in seen.begun.items() if begins < behind]
    if missing:
        return [Begin(log, behind) for log in missing]
    return [Exchange(growth.committed(seen.end, seen.closed), growth.count * 2)]


def ended(growth: Growth) -> Growth | None:
    """The growth, if it is to be ended; None if none is under way."""
    return None if growth.state is State.settled else replace(growth, state=State.ending)


def old_logs(growth: Growth) -> list[LogName]:
    """The logs that a growth closes."""
    return [(key, partition) for key in growth.stream_keys for partition in range(growth.count)]


def new_logs(growth: Growth) -> list[LogName]:
    """The logs that a growth begins."""
    return [(key, partition) for key in growth.stream_keys for partition in range(2 * growth.count)]
