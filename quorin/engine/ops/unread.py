"""What the log has of a schema behind a position, without decoding it."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorin.engine.log.record import Header, peek
from quorin.errors import InvalidEntryError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quorin.engine.backend import Bounds, Log


@dataclass(frozen=True, slots=True)
class Unread:
    """Entries behind a position: the headers of those that can be read, the number and the bytes of all.

    ``is_all`` is False if the log has, or may have, more of them than were read.
    """

    headers: list[Header]
    entries: int
    bytes: int
    is_all: bool

    @property
    def rows(self) -> int:
        """The rows of the entries that can be read."""
        return sum(header.row_count for header in self.headers)


def unread(
    log: Log, bounds: Bounds, wanted: Iterable[tuple[str, int]], *, max_entries: int, max_bytes: int
) -> dict[tuple[str, int], Unread]:
    """What a log, whose bounds are ``bounds``, has of each schema behind a position.

    One read answers for all if it reaches from the lowest position to the end of the log; else each has its own, of at
    most so many entries and bytes.
    """
    positions = set(wanted)
    found = {one: Unread([], 0, 0, is_all=True) for one in positions if one[1] >= bounds.last}
    behind = positions.difference(found)
    if len(behind) > 1:
        lowest, names = min(position for _, position in behind), {name for name, _ in behind}
        read = log.read(lowest, schema_names=names, max_entries=max_entries, max_bytes=max_bytes)
        if read.through >= bounds.last:
            return found | _by_schema(read.entries, behind)
    for name, position in behind:
        read = log.read(position, schema_names=[name], max_entries=max_entries, max_bytes=max_bytes)
        # If other schemas' entries fill a bounded read, this schema may have more entries behind them.
        found[name, position] = _unread([payload for _, payload in read.entries], is_all=read.through >= bounds.last)
    return found


def _by_schema(
    entries: Iterable[tuple[int, bytes]], wanted: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], Unread]:
    """Entries whose schema cannot be read count for none."""
    by_name: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for position, payload in entries:
        with suppress(InvalidEntryError):
            by_name[peek(payload).schema_name].append((position, payload))
    return {
        (name, after): _unread([payload for position, payload in by_name[name] if position > after], is_all=True)
        for name, after in wanted
    }


def _unread(payloads: list[bytes], *, is_all: bool) -> Unread:
    headers = []
    for payload in payloads:
        with suppress(InvalidEntryError):  # A consumer will make it a dead letter.
            headers.append(peek(payload))
    return Unread(headers, len(payloads), sum(len(payload) for payload in payloads), is_all)
