"""How far a history is complete: the position up to which it has all rows, though a schema's last ones are older.

A file of rows says that there are no others between two positions. Behind a schema's last file nothing says so, when
the log has been trimmed. So whoever writes the history and trims the log records, before it trims, up to which position
all rows are durable, and how far the files of each schema went then: if they go less far now, some are gone, and the
record says nothing of that schema. It is in one file of the folder, replaced whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorin.engine.history.storage import VanishedError
from quorin.errors import CorruptHistoryError

if TYPE_CHECKING:
    from quorin.engine.history.storage import Storage

FILE_NAME = "_complete.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Completeness:
    """All rows with positions up to ``through`` are durable, of schemas whose files go as far as ``files`` says: the
    last position of each one's files, by name, 0 without files.
    """

    through: int = 0
    files: Mapping[str, int] | None = None

    def of(self, schema_name: str, file_through: int) -> int:
        """The position up to which a schema has no rows behind its files, whose last one is ``file_through``; 0 if
        nobody knows.
        """
        recorded = (self.files or {}).get(schema_name)
        return 0 if recorded is None or recorded > file_through else self.through

    def write(self, storage: Storage) -> None:
        """Record it. :raises HistoryUnavailableError: if that fails; the former record stays."""
        text = json.dumps({"format": _FORMAT, "through": self.through, "files": dict(self.files or {})}, sort_keys=True)
        storage.write(storage.folder(FILE_NAME), lambda sink: sink.write(text.encode()))

    @classmethod
    def read(cls, storage: Storage) -> Completeness:
        """What is recorded; nothing if no file is there, or one of a later format.

        :raises CorruptHistoryError: if it is damaged. :raises HistoryUnavailableError: if it cannot be read now.
        """
        path = storage.folder(FILE_NAME)
        try:
            with storage.open(path) as file:
                content = file.readall()
        except VanishedError:
            return cls()
        try:
            found = json.loads(content)
            if found["format"] != _FORMAT:
                return cls()
            return cls(int(found["through"]), {str(name): int(at) for name, at in found["files"].items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptHistoryError(
                f"{path} is damaged ({error}): remove it, and the next flush writes it anew"
            ) from error


class Recorder:
    """Records it in a folder, if it has changed. ``look`` returns the last position of a schema's files."""

    def __init__(self, folder: Callable[[], Storage], look: Callable[[str], int]) -> None:
        self._folder = folder
        self._look = look
        self._recorded = Completeness()

    def record(self, position: int, files: Mapping[str, int | None]) -> None:
        """Record that all rows up to a position are durable, of schemas whose files go as far as ``files`` says. None:
        nothing was written here, so it is as far as was recorded before, or as a look at the files shows.
        """
        before = self._recorded.files or {}
        known = {name: before.get(name) if at is None else at for name, at in files.items()}
        complete = Completeness(position, {name: self._look(name) if at is None else at for name, at in known.items()})
        if complete != self._recorded:
            complete.write(self._folder())
            self._recorded = complete
