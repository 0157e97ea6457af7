"""A segment as one file, and back: a machine serves again in the time that it takes to copy the file.

A snapshot is the image of a segment, as :mod:`quorin.engine.format.segment` describes it, and 64 bytes behind it::

    byte  0        8             16                 32           40         48             56     60     64
          +--------+-------------+------------------+------------+----------+--------------+------+------+
          | magic  | image bytes | XXH3-128 of the  | taken at   | position | log identity | crc  | 0    |
          | 8 s    | u8          | image            | i8 ns      | u8       | u8           | u4   | u4   |
          +--------+-------------+------------------+------------+----------+--------------+------+------+

The checksum at byte 56 is the CRC-32 of the 56 bytes before it. All integers are little-endian.

The image is a copy made row by row, as readers read, so each row is one whole version of it whatever a writer does
meanwhile. Its position is the one that the segment had before the first row was copied: what was applied after that is
applied again from the log, which changes nothing.

:class:`SnapshotStore` keeps the newest snapshots of each schema in a directory or an object storage, and
:func:`restore_newest` builds a segment from the newest that fits. :class:`Peers` are nodes that send a snapshot over
HTTP, in place of a file.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from quorin.engine.bootstrap import image
from quorin.engine.bootstrap.files import FileSource, SnapshotResult, write_file
from quorin.engine.bootstrap.peers import Peers
from quorin.engine.bootstrap.restore import held_of, reduced, restore_newest
from quorin.engine.bootstrap.store import SnapshotStore
from quorin.engine.log.token import json_of
from quorin.engine.memory.parts import through_of
from quorin.engine.paths import absolute
from quorin.errors import CorruptSnapshotError, PeerUnavailableError, SnapshotUnavailableError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.shm import Segment, SegmentRegistry

    Progress = Callable[[int, int], None]

__all__ = [
    "CorruptSnapshotError",
    "PeerUnavailableError",
    "Peers",
    "SnapshotResult",
    "SnapshotStore",
    "SnapshotUnavailableError",
    "restore",
    "restore_newest",
    "snapshot",
]

_log = get_logger(__name__)


def snapshot(segment: Segment, path: str | os.PathLike[str], *, progress: Progress | None = None) -> SnapshotResult:
    """Write a segment to a file (mode 0600). Its writer and its readers go on meanwhile.

    The file is built aside in the same directory, forced to the disk, and renamed over what was there; a crash leaves
    the former file, or the new one whole, and possibly a directory ``.snapshot.….pending``. It takes as much disk as
    the segment takes memory. ``progress`` is called with bytes done and all bytes.

    :raises SharedMemoryError: if the directory has no room or can't be written.
    """
    target = absolute(path)
    return write_file(segment.current_view(), target.parent, lambda _: target.name, progress=progress)


def restore(
    path: str | os.PathLike[str], registry: SegmentRegistry, *, progress: Progress | None = None
) -> SnapshotResult:
    """Make a segment of a snapshot and make it current; its schema must have none. A consumer reads on from there.

    With several partitions the file must have all that ``registry`` holds, of the number that there are, or were before
    the deployment grew. Rows of others are left out; until they are, they need memory too. Each partition goes on from
    the position that it has in the file.

    Nothing is current before the whole file has been checked. A crash leaves a segment file that nothing points to, or
    one that ends in ``.pending``, for the watchdog.

    :raises CorruptSnapshotError: if the file is no snapshot, is damaged, or was written by another release.
    :raises SegmentConflictError: if the schema has a current segment, or got one meanwhile.
    :raises PartitionCountError: if the file has not all partitions that are held, or is of another number of them.
    :raises SharedMemoryError: if the file cannot be read, or there is no room in shared memory.
    """
    started, path = time.perf_counter(), absolute(path)
    with FileSource(path) as source:
        head = image.read_head(source)
        held, lost = held_of(head, registry, source.name), registry.vacancy(head.schema.__name__)
        view = image.receive(source, head, registry, progress=progress)
    segment = reduced(registry.adopt(view), registry, held)
    view = segment.current_view()
    name, entities, position = view.name, int(view.header["entity_count"]), through_of(view)
    registry.publish(segment, replacing=lost)
    _log.info("snapshot_restored", path=str(path), segment=name, position=json_of(position))
    seconds = time.perf_counter() - started
    return SnapshotResult(path, name, entities, head.image_bytes, position, seconds)
