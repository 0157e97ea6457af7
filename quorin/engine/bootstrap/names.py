"""Which snapshots of a store there are and which to use, decided from their names, without I/O.

A snapshot is named ``<position>-<taken>-<log>-<begins log>-<begins>-<version>-<fingerprint>-<bytes>.snapshot``: the
position in the log, the time in ns since the epoch, the log's identity, where the schema's rows begin (the identity of
a log and a position in it; zeros: at the start), the schema's version and fingerprint, and the size in bytes. Numbers
are padded, so names of one log sort by position. An object whose size is not that of its name is an upload that died.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from quorin.engine.backend.protocols import Beginning, Beginnings

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = re.compile(
    r"(?P<position>[0-9]{20})-(?P<taken>[0-9]{20})-(?P<log>[0-9a-f]{16})"
    r"-(?P<begins_log>[0-9a-f]{16})-(?P<begins>[0-9]{20})-(?P<version>[0-9]{10})"
    r"-(?P<fingerprint>[0-9a-f]{16})-(?P<size>[0-9]{15})\.snapshot\Z"
)


class SnapshotFile(NamedTuple):
    """A snapshot in a store, as its name describes it. ``path`` is the storage's own."""

    position: int
    taken_ns: int
    log_identity: int
    beginning: Beginning
    version: int
    fingerprint: int
    size: int
    path: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


class WantedPart(NamedTuple):
    """A partition that a snapshot must have: its number, its log's identity, and the lowest position."""

    partition: int
    log_identity: int
    from_position: int


class Wanted(NamedTuple):
    """What a snapshot must fit: the log that it follows, where its rows begin, and the lowest position. With several
    partitions these are in ``parts``, the identity is 0, and ``beginning`` is :func:`one_beginning` of all.
    """

    log_identity: int
    beginning: Beginning | None
    from_position: int
    parts: tuple[WantedPart, ...] = ()


FROM_THE_START = Beginning(0, 0)


def one_beginning(beginnings: Beginnings) -> Beginning:
    """Where a schema begins, in a name: of several partitions a digest, which is equal if all of them are."""
    if beginnings is None or isinstance(beginnings, Beginning):
        return FROM_THE_START if beginnings is None else beginnings
    from xxhash import xxh3_64_intdigest

    words = (f"{one.log_identity}:{one.position}" for one in beginnings)
    return Beginning(xxh3_64_intdigest(",".join(words).encode()) >> 1, 0)


def file_name(
    *, position: int, taken_ns: int, log_identity: int, beginning: Beginning, version: int, fingerprint: int, size: int
) -> str:
    """The name of a snapshot."""
    begins = f"{beginning.log_identity:016x}-{beginning.position:020}"
    return (
        f"{position:020}-{taken_ns:020}-{log_identity:016x}-{begins}-{version:010}-{fingerprint:016x}-{size:015}"
        ".snapshot"
    )


def parse_path(path: str, size: int) -> SnapshotFile | None:
    """The snapshot that a path names; None if the name does not fit, or says another size than ``size``."""
    match = _NAME.fullmatch(path.rpartition("/")[2])
    if match is None or int(match["size"]) != size:
        return None
    position, taken_ns, version = int(match["position"]), int(match["taken"]), int(match["version"])
    log_identity, fingerprint = int(match["log"], 16), int(match["fingerprint"], 16)
    beginning = Beginning(int(match["begins_log"], 16), int(match["begins"]))
    return SnapshotFile(position, taken_ns, log_identity, beginning, version, fingerprint, size, path)


def is_like_snapshot(path: str) -> bool:
    """Whether a path is named as a snapshot, whatever its size."""
    return _NAME.fullmatch(path.rpartition("/")[2]) is not None


def why_unfit(file: SnapshotFile, wanted: Wanted) -> str | None:
    """Why a snapshot's rows are not those of the schema in this log, or leave a gap to what the log has; None if they
    fit.
    """
    if file.log_identity != wanted.log_identity:
        return f"it follows log {file.log_identity:016x}, this one is {wanted.log_identity:016x}"
    if file.beginning != (FROM_THE_START if wanted.beginning is None else wanted.beginning):
        return "its rows are of an earlier schema of this name, which was dropped"
    if file.position < wanted.from_position:
        return f"it is at position {file.position}, and the log begins behind {wanted.from_position}"
    return None


def newest_first(files: Iterable[SnapshotFile], log_identity: int) -> list[SnapshotFile]:
    """Snapshots of the log first, by position; those of other logs behind, by the time that they were taken.

    Clocks do not decide within one log: the clock of one that wrote a snapshot may be wrong.
    """

    def key(file: SnapshotFile) -> tuple[bool, int, int, str]:
        is_same = file.log_identity == log_identity
        return is_same, file.position if is_same else 0, file.taken_ns, file.path

    return sorted(files, key=key, reverse=True)


def superseded(files: Iterable[SnapshotFile], log_identity: int, keep: int) -> list[SnapshotFile]:
    """The snapshots to remove, so that the ``keep`` newest stay."""
    return newest_first(files, log_identity)[keep:]
