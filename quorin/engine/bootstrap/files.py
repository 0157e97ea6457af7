"""Snapshots as local files: written aside and renamed, and read in order."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quorin.engine.bootstrap import image
from quorin.engine.history.files import PENDING_SUFFIX
from quorin.engine.history.storage import sync_folder
from quorin.engine.log.token import json_of
from quorin.engine.memory.parts import through_of
from quorin.errors import CorruptSnapshotError, SharedMemoryError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.bootstrap.image import Progress
    from quorin.engine.bootstrap.pace import Pace
    from quorin.engine.log.token import Token
    from quorin.engine.memory.view import SegmentView

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """What was written or brought back: the file (of an object storage, its path there), the segment, how far it
    follows the log (of several partitions, a token), and what it took.
    """

    path: Path
    segment_name: str
    entity_count: int
    byte_count: int
    position: int | Token
    elapsed_seconds: float

    @classmethod
    def of(cls, path: Path, copy: SegmentView, started: float) -> SnapshotResult:
        """The result for a copy that was written, which is logged; ``started`` is of the performance counter."""
        position, rows = through_of(copy), int(copy.header["entity_count"])
        seconds, size = time.perf_counter() - started, copy.layout.file_bytes
        _log.info(
            "snapshot_written", path=str(path), segment=copy.name, position=json_of(position), rows=rows, bytes=size,
            seconds=round(seconds, 3),
        )  # fmt: skip
        return cls(path, copy.name, rows, size, position, seconds)


def write_file(
    view: SegmentView,
    folder: Path,
    name_of: Callable[[SegmentView], str],
    *,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> SnapshotResult:
    """Write the rows of a view to a file in ``folder``, mode 0600, which is named when the rows have been copied.

    The file is built aside, forced to the disk, and renamed over what was there; a crash leaves the former file, or the
    new one whole, and possibly a directory ``.snapshot.….pending``.

    :raises SharedMemoryError: if the directory has no room or can't be written.
    """
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix=".snapshot.", suffix=PENDING_SUFFIX, dir=folder) as aside:
            copy = image.copied(view, Path(aside), pace)
            _append_trailer(copy, progress, pace)
            target = folder / name_of(copy)
            copy.path.rename(target)
        sync_folder(folder)
    except OSError as error:
        if isinstance(error, SharedMemoryError):
            raise
        raise SharedMemoryError(error.errno, f"cannot write a snapshot in {folder}: {error.strerror}") from error
    return SnapshotResult.of(target, copy, started)


class FileSource:
    """A snapshot's file, open for reading inside a ``with`` block.

    :raises CorruptSnapshotError: if it is no regular file. :raises SharedMemoryError: if it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._offset = 0
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(error) from error
        state = os.fstat(self._descriptor)
        self.size = state.st_size
        if not stat.S_ISREG(state.st_mode):
            os.close(self._descriptor)
            raise CorruptSnapshotError(f"{path} is no snapshot: expected a regular file")

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read_into(self, into: memoryview) -> int:
        """Read at least one byte, at most as many as fit; 0 at the end."""
        try:
            count = os.preadv(self._descriptor, [into], self._offset)
        except OSError as error:
            raise self._unreadable(error) from error
        self._offset += count
        return count

    def _unreadable(self, error: OSError) -> SharedMemoryError:
        return SharedMemoryError(error.errno, f"cannot read the snapshot {self.name}: {error.strerror}")


def _append_trailer(copy: SegmentView, progress: Progress | None, pace: Pace | None) -> None:
    trailer = memoryview(b"")
    for block in image.blocks(copy, progress, pace):
        trailer = block
    descriptor = os.open(copy.path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(descriptor, trailer, copy.layout.file_bytes) != len(trailer):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
