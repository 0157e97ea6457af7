"""Generations that are kept when another takes their place, so that one can go back to them.

A kept generation's file is renamed to ``<segment>.<reason>-<ns since the epoch, hex>.kept``. So nothing that walks a
line of generations meets it: readers, writers and the watchdog see the line as if the file had been removed. It is
renamed after the flip; a crash in between leaves it unkept, which loses the way back and nothing else.
"""

from __future__ import annotations

import errno
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from quorin.engine.format.name import SegmentName
from quorin.engine.memory import file as mapping
from quorin.engine.memory.pins import is_pinned, remove_unpinned
from quorin.errors import SharedMemoryError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Created = TypeVar("Created")
Reason = Literal["replace", "upgrade"]

DEFAULT_PINNED_GENERATIONS = 4
_KEPT_NAME = re.compile(r"(?P<name>.+)\.(?P<reason>[a-z]+)-(?P<at>[0-9a-f]{16})\.kept\Z")

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many generations of a schema are kept (None: one, and only after a replacement), how many bytes those of all
    schemas of the deployment may take together (None: no limit), and how many generations of a schema may be pinned at
    a time.

    :raises ValueError: for a number out of range.
    """

    generations: int | None = None
    bytes: int | None = None
    pinned: int = DEFAULT_PINNED_GENERATIONS

    def __post_init__(self) -> None:
        for name, value, least in (
            ("keep_generations", self.generations, 0),
            ("keep_bytes", self.bytes, 0),
            ("max_pinned", self.pinned, 1),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}")

    def keeps_after(self, reason: Reason) -> bool:
        """Whether the generation that was replaced is kept. An upgrade carries all rows over."""
        return reason == "replace" if self.generations is None else self.generations > 0


@dataclass(frozen=True, slots=True)
class KeptFile:
    """The file of a kept generation: its name as a segment, why and when (ns since the epoch) it was kept."""

    path: Path
    name: SegmentName
    reason: str
    at_ns: int

    @property
    def bytes(self) -> int:
        """Its size; 0 if it is gone."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0


class Kept(NamedTuple):
    """How many generations of a line are kept, and how many bytes they take."""

    generations: int
    bytes: int


NOTHING_KEPT = Kept(0, 0)


def parse_kept(path: Path) -> KeptFile | None:
    """The kept generation of a file; None if its name is not that of one."""
    match = _KEPT_NAME.match(path.name)
    name = None if match is None else SegmentName.match(match["name"])
    return None if match is None or name is None else KeptFile(path, name, match["reason"], int(match["at"], 16))


def kept_files(directory: Path, name: SegmentName) -> list[KeptFile]:
    """The kept generations of a segment's line, oldest first."""
    return sorted(
        (kept for kept in _files(directory, f"{name.line}*.kept") if kept.name.line == name.line),
        key=lambda kept: (kept.name, kept.at_ns),
    )


def keep(path: Path, name: SegmentName, reason: Reason, owner: int, limits: Limits) -> None:
    """Keep the file of a generation that is no longer in force, as far as the limits allow; then remove the oldest that
    are beyond them and not pinned.

    :raises OSError: if the system refuses; the file is as it was.
    """
    most = 1 if limits.generations is None else limits.generations
    if limits.keeps_after(reason):
        path.rename(path.with_name(f"{path.name}.{reason}-{time.time_ns():016x}.kept"))
    _remove(kept_files(path.parent, name)[: -most or None])
    if limits.bytes is not None:
        _shrink(path.parent, owner, limits.bytes)


def with_room(directory: Path, owner: int, create: Callable[[], Created]) -> Created:
    """Create a segment file of a deployment. Where there is no room for it, kept generations go, the oldest first: rows
    that are to be served go before them.

    :raises SharedMemoryError: as ``create``, if none is left that is not pinned.
    """
    while True:
        try:
            return create()
        except SharedMemoryError as error:
            if error.errno != errno.ENOSPC or not any(_remove([kept]) for kept in _of_owner(directory, owner)):
                raise


def kept_sizes(directory: Path) -> dict[str, Kept]:
    """How many generations are kept of each line of a directory, and their bytes."""
    sizes: dict[str, Kept] = {}
    for kept in _files(directory, "*.kept"):
        before = sizes.get(kept.name.line, NOTHING_KEPT)
        sizes[kept.name.line] = Kept(before.generations + 1, before.bytes + kept.bytes)
    return sizes


def unlink_kept(directory: Path, name: SegmentName) -> None:
    """Remove all kept generations of a line, pinned ones too: their readers keep the memory, not the name."""
    for kept in kept_files(directory, name):
        mapping.unlink(kept.path)


def pinned_files(directory: Path, name: SegmentName) -> list[Path]:
    """The files of a line's generations that are pinned."""
    paths = [directory / str(sibling) for sibling in name.siblings(directory)]
    return [path for path in (*paths, *(kept.path for kept in kept_files(directory, name))) if is_pinned(path)]


def _shrink(directory: Path, owner: int, most: int) -> None:
    kept = _of_owner(directory, owner)
    while sum(one.bytes for one in kept) > most and kept:
        _remove([kept.pop(0)])


def _of_owner(directory: Path, owner: int) -> list[KeptFile]:
    """The kept generations of a deployment, those that were kept first before the others."""
    found = []
    for kept in _files(directory, "*.kept"):
        header = mapping.read_header(kept.path)
        if header is not None and int(header["owner"]) == owner:
            found.append(kept)
    return sorted(found, key=lambda kept: kept.at_ns)


def _files(directory: Path, pattern: str) -> Iterator[KeptFile]:
    return (kept for path in directory.glob(pattern) if (kept := parse_kept(path)) is not None)


def _remove(files: list[KeptFile]) -> int:
    """Remove files that are not pinned; how many went."""
    removed = 0
    for kept in files:
        byte_count = kept.bytes
        if byte_count and remove_unpinned(kept.path):
            removed += 1
            _log.info("kept_generation_removed", segment=str(kept.name), size=byte_count)
    return removed
