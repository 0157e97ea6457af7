"""What the control plane has of growths to more partitions: the last one, and the numbers that there were before."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum


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

    ``stream_keys`` are the names of the logs that grow; ``coordinator`` is the process that began.
    ``former`` are the counts that there were, the oldest first,
    until their logs are empty.
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
        found["former"] = tuple(Former(**former) for former in found["former"])
        return cls(**found)

    def to_json(self) -> str:
        """As the control plane stores it: the same bytes for the same growth."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def begun(self, count: int, stream_keys: tuple[str, ...], coordinator: str) -> Growth:
        """The next growth, from a count of partitions."""
        return Growth(State.closing, self.number + 1, count, stream_keys, coordinator, self.former)

    def committed(self, end: int) -> Growth:
        """This one, done."""
        return replace(self, state=State.settled, former=(*self.former, Former(self.count, end)))


def counts_before(text: str | None) -> set[int]:
    """The numbers of partitions that a deployment has grown from, from the JSON in its control plane."""
    return {former.count for former in Growth.parse(text).former}
