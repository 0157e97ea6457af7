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

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

LogName = tuple[str, int]
"""A log of the old or the new count: its stream key and partition."""


class State(StrEnum):
    """Where the last growth is."""

    settled = "settled"
    closing = "closing"
    ending = "ending"


@dataclass(frozen=True, slots=True)
class Former:
    """A count of partitions that the deployment had. ``end``: every position of its logs is at or below it, and all of
    later logs are above.
    """

    count: int
    end: int


@dataclass(frozen=True, slots=True)
class Growth:
    """What the control plane has of growths. ``number`` is that of the last one, ``count`` what it began with.

    ``stream_keys`` are the names of the logs that grow. ``former`` are the counts that there were, the oldest first,
    until their logs are empty.
    """

    state: State = State.settled
    number: int = 0
    count: int = 1
    stream_keys: tuple[str, ...] = ()
    coordinator: str = ""
    began_ns: int = 0
    former: tuple[Former, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Growth:
        """From the JSON in the control plane; None is a deployment that never grew."""
        if text is None:
            return cls()
        found = json.loads(text)
        found["state"] = State(found["state"])
        found["stream_keys"] = tuple(found["stream_keys"])
        found["former"] = tuple(Former(**former) for former in found["former"])
        return cls(**found)

    def to_json(self) -> str:
        """As the control plane stores it: the same bytes for the same growth."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def begun(self, count: int, stream_keys: tuple[str, ...], coordinator: str, now_ns: int) -> Growth:
        """The next growth, from a count of partitions."""
        return Growth(State.closing, self.number + 1, count, stream_keys, coordinator, now_ns, self.former)

    def committed(self, end: int) -> Growth:
        """This one, done."""
        return replace(self, state=State.settled, former=(*self.former, Former(self.count, end)))


@dataclass(frozen=True, slots=True)
class Seen:
    """The logs of a growth. ``ends`` has the last position of each old log, None while it takes appends; ``begun`` the
    position behind which each new log begins, 0 if it was not begun.
    """

    ends: Mapping[LogName, int | None]
    begun: Mapping[LogName, int]

    @property
    def end(self) -> int:
        """The highest position of the old logs."""
        return max((end for end in self.ends.values() if end is not None), default=0)


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


def is_complete(growth: Growth, seen: Seen) -> bool:
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
    return [Exchange(growth.committed(seen.end), growth.count * 2)]


def ended(growth: Growth) -> Growth | None:
    """The growth, if it is to be ended; None if none is under way."""
    return None if growth.state is State.settled else replace(growth, state=State.ending)


def old_logs(growth: Growth) -> list[LogName]:
    """The logs that a growth closes."""
    return [(key, partition) for key in growth.stream_keys for partition in range(growth.count)]


def new_logs(growth: Growth) -> list[LogName]:
    """The logs that a growth begins."""
    return [(key, partition) for key in growth.stream_keys for partition in range(2 * growth.count)]
