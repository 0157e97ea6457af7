"""Which history files and rows are in force, decided from names and ranges, without I/O.

A file is named ``<after>-<through>.parquet`` and holds **all** rows of its schema whose log positions lie in
``(after, through]``. Ranges of files overlap if an overtaken writer flushed late, or a compaction was killed before it
removed the files it merged. Both files then hold the same rows, because the log does, so each position is taken from
one of them: see :func:`in_force`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NAME = re.compile(r"(\d{20})-(\d{20})\.parquet\Z")
PENDING_SUFFIX = ".pending"


class DataFile(NamedTuple):
    """A file of the history: all rows of its schema with positions in ``(after, through]``."""

    after: int
    through: int
    path: str

    @property
    def day(self) -> str:
        """The folder that the file is in."""
        return self.path.rpartition("/")[0]


class Piece(NamedTuple):
    """A file and its part in force: the rows with positions beyond ``beyond``."""

    file: DataFile
    beyond: int


def file_name(after: int, through: int) -> str:
    """The name of the file with the positions in ``(after, through]``."""
    return f"{after:020}-{through:020}.parquet"


def parse_path(path: str) -> DataFile | None:
    """The file that a path names; None if the name does not fit."""
    match = _NAME.search(path.rpartition("/")[2])
    if match is None or match.start() or int(match[1]) >= int(match[2]):
        return None
    return DataFile(int(match[1]), int(match[2]), path)


def in_force(files: Iterable[DataFile]) -> list[Piece]:
    """The files in force, in log order: every position in any file's range is in exactly one piece.

    A file is in force from the end of the previous ones; a file inside their ranges is not in force at all.
    """
    pieces, covered = [], -1
    for file in sorted(files, key=lambda file: (file.after, -file.through, file.path)):
        if file.through > covered:
            pieces.append(Piece(file, max(file.after, covered)))
            covered = file.through
    return pieces


def superseded(files: Iterable[DataFile]) -> list[DataFile]:
    """The files that are not in force because others cover their ranges."""
    files = list(files)
    counting = {piece.file for piece in in_force(files)}
    return [file for file in files if file not in counting]


def mergeable(pieces: Sequence[Piece], rows: Sequence[int], *, most_rows: int) -> list[list[Piece]]:
    """Runs of at least two adjacent files of one day, without gaps, with at most ``most_rows`` rows each.

    Only such a run may become one file: its range, from the first ``after`` to the last ``through``, then covers no
    more than its parts did.
    """
    runs: list[list[Piece]] = []
    total = 0
    for piece, count in zip(pieces, rows, strict=True):
        last = runs[-1][-1].file if runs else None
        joins = last is not None and last.day == piece.file.day and piece.file.after <= last.through
        if joins and total + count <= most_rows:
            runs[-1].append(piece)
            total += count
        else:
            runs.append([piece])
            total = count
    return [run for run in runs if len(run) > 1]
