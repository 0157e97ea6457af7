"""Replay dead letters, after the cause has been fixed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.log.record import decode
from quorin.errors import InvalidEntryError

if TYPE_CHECKING:
    from quorin.engine.backend import DeadLetter, Log


def replay(log: Log, letter: DeadLetter) -> int:
    """Append a dead letter's record to the log again, remove the letter, and return the new position.

    Event times decide as always, so newer rows stay. A crash in between leaves the letter and the entry, which does no
    harm. A record that still cannot be applied becomes a dead letter again, at its new position.

    :raises InvalidEntryError: if the record cannot be decoded; the letter stays.
    :raises LogFullError: if the log is at its limit; the letter stays.
    """
    try:
        name = decode(letter.payload).schema_name
    except InvalidEntryError as error:
        raise InvalidEntryError(f"dead letter {letter.position} cannot be replayed: {error}") from error
    position = log.append([(name, letter.payload)])[0]
    log.remove_dead_letter(letter.position)
    return position
