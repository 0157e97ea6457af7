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
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.name import SegmentName
from quorin.engine.memory import file as mapping
from quorin.engine.memory.access import Access
from quorin.engine.memory.generations import copy_rows
from quorin.engine.memory.header import rename
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.view import SegmentView
from quorin.engine.paths import absolute
from quorin.errors import CorruptSegmentError, CorruptSnapshotError, SharedMemoryError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from quorin.shm import SegmentRegistry

    Progress = Callable[[int, int], None]

__all__ = ["CorruptSnapshotError", "SnapshotResult", "restore", "snapshot"]

MAGIC = b"QRSNAP\x00\x01"
_TRAILER = struct.Struct("<8sQ16sqQQII")
_CHECKED_BYTES = 56
assert _TRAILER.size == 64  # noqa: S101 - the grid above, checked at import
_CHUNK_BYTES, _BLOCK_BYTES = 8 << 20, 1 << 20

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """What was written or brought back: the file, the segment, how far it follows the log, and what it took."""

    path: Path
    segment_name: str
    entity_count: int
    byte_count: int
    position: int
    elapsed_seconds: float


def snapshot(segment: Segment, path: str | os.PathLike[str], *, progress: Progress | None = None) -> SnapshotResult:
    """Write a segment to a file (mode 0600). Its writer and its readers go on meanwhile.

    The file is built aside in the same directory, forced to the disk, and renamed over what was there; a crash leaves
    the former file, or the new one whole, and possibly a directory ``.<name>.….pending``. It takes as much disk as the
    segment takes memory. ``progress`` is called with bytes done and all bytes.

    :raises SharedMemoryError: if the directory has no room or can't be written.
    """
    started, target = time.perf_counter(), absolute(path)
    view = segment.current_view()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".pending", dir=target.parent) as aside:
            copy = _copied(view, Path(aside))
            _append_trailer(copy, progress)
            copy.path.rename(target)
        _sync(target.parent)
    except OSError as error:
        if isinstance(error, SharedMemoryError):
            raise
        raise SharedMemoryError(error.errno, f"cannot write the snapshot {target}: {error.strerror}") from error
    position = int(copy.header["partitions"][0]["position"])
    seconds = time.perf_counter() - started
    _log.info("snapshot_written", path=str(target), segment=view.name, position=position)
    return SnapshotResult(
        target, view.name, int(copy.header["entity_count"]), copy.layout.file_bytes, position, seconds
    )


def restore(
    path: str | os.PathLike[str], registry: SegmentRegistry, *, progress: Progress | None = None
) -> SnapshotResult:
    """Make a segment of a snapshot and make it current; its schema must have none. A consumer reads on from there.

    Nothing is current before the whole file has been checked. A crash leaves a segment file that nothing points to, or
    one that ends in ``.pending``, for the watchdog.

    :raises CorruptSnapshotError: if the file is no snapshot, is damaged, or was written by another release.
    :raises SegmentConflictError: if the schema has a current segment, or got one meanwhile.
    :raises SharedMemoryError: if the file cannot be read, or there is no room in shared memory.
    """
    started, source = time.perf_counter(), absolute(path)
    with _opened(source) as (descriptor, trailer):
        schema_name = _schema_name(source, descriptor)
        lost = registry.vacancy(schema_name)
        name = SegmentName.first(schema_name)
        owner = registry.node.identity
        image = _checked_image(source, descriptor, trailer, progress)
        pending = mapping.PendingFile(
            registry.shm_dir / str(name),
            trailer.image_bytes,
            owner=owner,
            access=Access.for_group(registry.shm_group),
            image=image,
        )
        try:
            rename(pending.mapping.memory, name, owner)
            pending.publish()
        except BaseException:
            pending.discard()
            raise
    try:
        view = SegmentView.attach(registry.shm_dir / str(name), None, writable=False, populate=False)
    except BaseException as error:
        mapping.unlink(registry.shm_dir / str(name))
        if isinstance(error, CorruptSegmentError):
            raise CorruptSnapshotError(f"{source} holds no segment of this release: {error}") from error
        raise
    registry.publish(Segment(view, registry.node, read_only=True), replacing=lost)
    _log.info("snapshot_restored", path=str(source), segment=str(name), position=trailer.position)
    seconds = time.perf_counter() - started
    entities = int(view.header["entity_count"])
    return SnapshotResult(source, str(name), entities, trailer.image_bytes, trailer.position, seconds)


@dataclass(frozen=True, slots=True)
class _Trailer:
    image_bytes: int
    digest: bytes
    position: int


def _copied(view: SegmentView, directory: Path) -> SegmentView:
    """A segment file in ``directory`` with all of a view's rows; bigger, if what is written meanwhile asks for it."""
    partitions = view.header["partitions"].copy()
    heap_bytes = view.layout.heap_bytes
    rows = int(view.header["entity_count"] + view.header["deleted_count"])
    while True:
        copy = SegmentView.create(
            directory,
            view.segment_name,
            view.stored,
            capacity=view.layout.capacity,
            max_id_bytes=view.layout.max_id_bytes,
            heap_bytes=heap_bytes,
            prefault_rows=rows,
        )
        if copy_rows(view, copy):
            copy.header["partitions"] = partitions
            copy.header["partitions"]["confirmed_ns"] = 0  # It says nothing about when the copy is served.
            return copy
        copy.path.unlink()
        heap_bytes *= 2


def _append_trailer(copy: SegmentView, progress: Progress | None) -> None:
    from xxhash import xxh3_128

    digest = xxh3_128()
    memory, total = copy.mapping.memory.data, copy.layout.file_bytes
    for start in range(0, total, _CHUNK_BYTES):
        digest.update(memory[start : start + _CHUNK_BYTES])
        if progress is not None:
            progress(min(total, start + _CHUNK_BYTES), total)
    partition = copy.header["partitions"][0]
    checked = _TRAILER.pack(
        MAGIC,
        total,
        digest.digest(),
        time.time_ns(),
        int(partition["position"]),
        int(partition["log_identity"]),
        0,
        0,
    )[:_CHECKED_BYTES]
    descriptor = os.open(copy.path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        trailer = checked + struct.pack("<II", zlib.crc32(checked), 0)
        if os.pwrite(descriptor, trailer, total) != len(trailer):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, _Trailer]]:
    """A snapshot's descriptor and its trailer, which is whole and fits the file's size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SharedMemoryError(error.errno, f"cannot read the snapshot {path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptSnapshotError(f"{path} is no snapshot: expected a regular file")
        size = os.fstat(descriptor).st_size
        image_bytes = size - _TRAILER.size
        if image_bytes < fmt.HEADER_BYTES:
            raise CorruptSnapshotError(f"{path} is no snapshot: it has {size} bytes")
        raw = _read(path, descriptor, image_bytes, memoryview(bytearray(_TRAILER.size))).tobytes()
        magic, stated, digest, _, position, _, crc, _ = _TRAILER.unpack(raw)
        if magic != MAGIC:
            raise CorruptSnapshotError(f"{path} is no snapshot, or is cut short: it ends with {raw[:8]!r}")
        computed = zlib.crc32(raw[:_CHECKED_BYTES])
        if crc != computed or stated != image_bytes:
            raise CorruptSnapshotError(
                f"{path} is damaged: checksum {crc:#010x}, computed {computed:#010x}; image of {stated} bytes, "
                f"the file has {image_bytes}"
            )
        yield descriptor, _Trailer(image_bytes, digest, position)
    finally:
        os.close(descriptor)


def _schema_name(path: Path, descriptor: int) -> str:
    raw = _read(path, descriptor, 0, memoryview(bytearray(fmt.HEADER_BYTES)))
    header = np.frombuffer(raw, fmt.HEADER_DTYPE)[0]
    text = header["name"].decode("ascii", "replace")
    name = SegmentName.match(text)
    if header["magic"] != fmt.MAGIC or name is None:
        raise CorruptSnapshotError(f"{path} is damaged: {text!r} is no segment's name")
    return name.schema


def _checked_image(path: Path, descriptor: int, trailer: _Trailer, progress: Progress | None) -> Iterator[memoryview]:
    """The image in blocks, each good until the next; the last only ends well if the whole is what it was.

    Blocks are small enough for the cache to hold them until they are written.
    """
    from xxhash import xxh3_128

    digest, block = xxh3_128(), memoryview(bytearray(_BLOCK_BYTES))
    start, total = 0, trailer.image_bytes
    while start < total:
        part = _read(path, descriptor, start, block[: total - start])
        digest.update(part)
        yield part
        start += len(part)
        if progress is not None:
            progress(start, total)
    if digest.digest() != trailer.digest:
        raise CorruptSnapshotError(f"{path} is damaged: checksum {digest.hexdigest()}, expected {trailer.digest.hex()}")


def _read(path: Path, descriptor: int, start: int, into: memoryview) -> memoryview:
    """``into``, filled with the file's bytes from ``start`` on; the system may read less than that at a time.

    :raises SharedMemoryError: if the system cannot read the file.
    :raises CorruptSnapshotError: if the file ends before.
    """
    done = 0
    while done < len(into):
        try:
            count = os.preadv(descriptor, [into[done:]], start + done)
        except OSError as error:
            raise SharedMemoryError(error.errno, f"cannot read the snapshot {path}: {error.strerror}") from error
        if not count:
            raise CorruptSnapshotError(f"{path} is cut short: it ends at byte {start + done}")
        done += count
    return into


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
