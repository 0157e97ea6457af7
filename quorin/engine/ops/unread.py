"""What the log has of a schema behind a position, without decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorin.engine.log.record import Header, peek
from quorin.errors import InvalidEntryError

if TYPE_CHECKING:
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


def unread(log: Log, bounds: Bounds, schema_name: str, position: int, *, max_entries: int, max_bytes: int) -> Unread:
    """Read at most so many entries of a schema behind ``position`` of a log whose bounds are ``bounds``."""
    if position >= bounds.last:
        return Unread([], 0, 0, is_all=True)
    found = log.read(position, schema_names=[schema_name], max_entries=max_entries, max_bytes=max_bytes)
    headers = []
    for _, payload in found.entries:
        try:
            headers.append(peek(payload))
        except InvalidEntryError:  # A consumer will make it a dead letter.
            continue
    size = sum(len(payload) for _, payload in found.entries)
    # If other schemas' entries fill a bounded read, this schema may have more entries behind them.
    return Unread(headers, len(found.entries), size, is_all=found.through >= bounds.last)
