"""What the control plane has of growths to more partitions: the last one, and the numbers that there were before."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where the last growth is."""

    settled = "settled"
    closing = "closing"
    ending = "ending"


@dataclass(frozen=True, slots=True)
class Closed:
    """A log that a growth has closed, and the position where it ended."""

    stream_key: str
    partition: int
    identity: int
    end: int


@dataclass(frozen=True, slots=True)
class Former:
    """A count of partitions that the deployment had. ``end``: every position of its ``logs`` is at or below it, and all
    of later logs are above.
    """

    count: int
    end: int
    logs: tuple[Closed, ...] = ()

    def ends(self, log: Closed) -> Former:
        """The same, with another end of one of its logs."""
        kept = (log if (one.stream_key, one.partition) == (log.stream_key, log.partition) else one for one in self.logs)
        return replace(self, logs=tuple(kept))


@dataclass(frozen=True, slots=True)
class Growth:
    """What the control plane has of growths. ``number`` is that of the last one, ``count`` what it began with.

    ``stream_keys`` are the names of the logs that grow; ``coordinator`` is the process that began.
    ``former`` are the counts that there were, the oldest first.
    """

    state: State = State.settled
    number: int = 0
    count: int = 1
    stream_keys: tuple[str, ...] = ()
    coordinator: str = ""
    former: tuple[Former, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Growth:
        """From the JSON in the control plane; None is a deployment that never grew."""
        if text is None:
            return cls()
        found = json.loads(text)
        found["state"] = State(found["state"])
        found["stream_keys"] = tuple(found["stream_keys"])
        found["former"] = tuple(_former(**former) for former in found["former"])
        return cls(**found)

    def to_json(self) -> str:
        """As the control plane stores it: the same bytes for the same growth."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def begun(self, count: int, stream_keys: tuple[str, ...], coordinator: str) -> Growth:
        """The next growth, from a count of partitions."""
        return Growth(State.closing, self.number + 1, count, stream_keys, coordinator, self.former)

    def committed(self, end: int, logs: tuple[Closed, ...] = ()) -> Growth:
        """This one, done: all positions of the ``logs`` that it closed are at or below ``end``."""
        return replace(self, state=State.settled, former=(*self.former, Former(self.count, end, logs)))

    @property
    def counts(self) -> list[int]:
        """The numbers of partitions that there were, the oldest first."""
        return [former.count for former in self.former]

    def follows(self, other: Growth) -> bool:
        """Whether the deployment has grown since ``other`` was all that its control plane had."""
        return len(self.former) > len(other.former) and self.counts[: len(other.former)] == other.counts

    def restored(self, other: Growth) -> Growth:
        """This one, to be stored in place of ``other``, by a number that no earlier process acts on."""
        return replace(self, state=State.settled, number=max(self.number, other.number) + 1)

    def ended_at(self, count: int, log: Closed) -> Growth:
        """The same, with another end of a closed log of ``count`` partitions."""
        former = tuple(one.ends(log) if one.count == count else one for one in self.former)
        return replace(self, former=former)


def _former(count: int, end: int, logs: list[dict[str, Any]]) -> Former:
    return Former(count, end, tuple(Closed(**log) for log in logs))


def counts_before(text: str | None) -> set[int]:
    """The numbers of partitions that a deployment has grown from, from the JSON in its control plane."""
    return set(Growth.parse(text).counts)
