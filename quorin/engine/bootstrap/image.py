"""The bytes of a snapshot: the image of a segment, as :mod:`quorin.engine.format.segment` describes it, and a trailer.

The trailer comes last, so a cut stream has none, and the checksums come before anything is served. A snapshot is made
from a copy of the rows, one whole version of each, and read from any source of bytes in order: a file, an object, an
HTTP response.
"""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quorin.engine.bootstrap import names
from quorin.engine.format import segment as fmt
from quorin.engine.format.name import SegmentName
from quorin.engine.memory import file as mapping
from quorin.engine.memory.access import Access
from quorin.engine.memory.closed import carry_closed
from quorin.engine.memory.generations import copy_rows
from quorin.engine.memory.header import check_header, header_of, partitioning_of, rename
from quorin.engine.memory.view import SegmentView
from quorin.errors import CorruptSegmentError, CorruptSnapshotError, SchemaError
from quorin.schema import fingerprint, schema_from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from quorin.engine.backend.protocols import Beginnings
    from quorin.engine.bootstrap.pace import Pace
    from quorin.engine.format.partition import Partitioning
    from quorin.schema import Schema
    from quorin.shm import SegmentRegistry

    Progress = Callable[[int, int], None]

MAGIC = b"QRSNAP\x00\x01"
_TRAILER = struct.Struct("<8sQ16sqQQII")
TRAILER_BYTES = _TRAILER.size
_CHECKED_BYTES = 56
assert TRAILER_BYTES == 64  # noqa: S101 - the grid in quorin.snapshot, checked at import
_BLOCK_BYTES = 1 << 20
"""Small enough for the processor's cache to hold a block until it is written or sent."""


class Source(Protocol):
    """A snapshot's bytes, read in order."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def size(self) -> int:
        """All of its bytes, the trailer included."""

    def read_into(self, into: memoryview) -> int:
        """Read at least one byte, at most as many as fit; 0 at the end."""


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an image: its header and schema, which fit together. ``parts`` has the log's identity and the
    position of each partition.
    """

    raw: bytes
    schema: Schema
    image_bytes: int
    owner: int
    log_identity: int
    position: int
    rows: int
    partitioning: Partitioning
    parts: tuple[tuple[int, int], ...]


def copied(view: SegmentView, directory: Path, pace: Pace | None = None) -> SegmentView:
    """A segment file in ``directory`` with all of a view's rows; bigger, if what is written meanwhile asks for it.

    Its position is the one that the view had before the first row was copied.
    """
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
            partitioning=view.partitioning,
        )
        if copy_rows(view, copy, copied=None if pace is None else _paced(pace, view.layout.row_stride)) is not None:
            copy.header["partitions"] = partitions
            # It says nothing about when the copy is served, but which partitions have all rows.
            copy.header["partitions"]["confirmed_ns"] = np.minimum(partitions["confirmed_ns"], 0)
            carry_closed(partitions, view, copy)
            return copy
        copy.path.unlink()
        heap_bytes *= 2


def name_of(copy: SegmentView, *, beginning: Beginnings) -> str:
    """The name of the snapshot of a copy, whose rows begin at ``beginning``."""
    position, log_identity = position_of(copy.header)
    return names.file_name(
        position=position,
        taken_ns=time.time_ns(),
        log_identity=log_identity,
        beginning=names.one_beginning(beginning),
        version=copy.stored.version,
        fingerprint=fingerprint(copy.stored),
        size=copy.layout.file_bytes + TRAILER_BYTES,
    )


def blocks(
    copy: SegmentView, progress: Progress | None = None, pace: Pace | None = None
) -> Generator[memoryview, None, None]:
    """The bytes of a snapshot in order; the last block is the trailer. ``progress`` counts those of the image."""
    from xxhash import xxh3_128

    digest = xxh3_128()
    memory, total = copy.mapping.memory.data, copy.layout.file_bytes
    for start in range(0, total, _BLOCK_BYTES):
        block = memory[start : start + _BLOCK_BYTES]
        digest.update(block)
        yield block
        if pace is not None:
            pace.spend(len(block))
        if progress is not None:
            progress(min(total, start + _BLOCK_BYTES), total)
    position, log_identity = position_of(copy.header)
    checked = _TRAILER.pack(MAGIC, total, digest.digest(), time.time_ns(), position, log_identity, 0, 0)
    checked = checked[:_CHECKED_BYTES]
    yield memoryview(checked + struct.pack("<II", zlib.crc32(checked), 0))


def read_head(source: Source) -> Head:
    """Read and check what an image begins with. Nothing behind it has been read then.

    :raises CorruptSnapshotError: if it is no image, is damaged, or was written by another release.
    """
    image_bytes = source.size - TRAILER_BYTES
    if image_bytes < fmt.HEADER_BYTES:
        raise CorruptSnapshotError(f"{source.name} is no snapshot: it has {source.size} bytes")
    raw = bytes(_filled(source, memoryview(bytearray(fmt.HEADER_BYTES))))
    header = header_of(np.frombuffer(raw, np.uint8))
    header_bytes = int(header["header_bytes"])
    if raw[:8] == fmt.MAGIC and header_bytes in fmt.HEADER_DTYPES:
        schema_bytes = int(header["schema_bytes"])
        if header_bytes + schema_bytes > image_bytes:
            raise CorruptSnapshotError(f"{source.name} is damaged: a schema of {schema_bytes} bytes")
        raw += bytes(_filled(source, memoryview(bytearray(header_bytes - len(raw) + schema_bytes))))
        header = header_of(np.frombuffer(raw, np.uint8))
    try:
        check_header(source.name, np.frombuffer(raw, np.uint8), header, size=image_bytes)
        schema = schema_from_json(raw[header_bytes:].decode())
    except (CorruptSegmentError, SchemaError, ValueError) as error:
        raise CorruptSnapshotError(f"{source.name} is no snapshot of this release, or is damaged: {error}") from error
    name = SegmentName.parse(header["name"].decode())
    if schema.__name__ != name.schema:
        raise CorruptSnapshotError(f"{source.name} is damaged: {name} holds {schema.__name__!r}")
    position, log_identity = position_of(header)
    return Head(
        raw,
        schema,
        image_bytes,
        owner=int(header["owner"]),
        log_identity=log_identity,
        position=position,
        rows=int(header["entity_count"]),
        partitioning=partitioning_of(header),
        parts=tuple((int(part["log_identity"]), int(part["position"])) for part in header["partitions"]),
    )


def position_of(header: Any) -> tuple[int, int]:
    """The position that an image has applied, and the log that it belongs to; of several partitions the highest, and 0,
    as each has a log of its own.
    """
    parts = header["partitions"]
    if int(header["partition_count"]):
        return int(parts["position"].max()), 0
    return int(parts["position"][0]), int(parts["log_identity"][0])


def receive(
    source: Source,
    head: Head,
    registry: SegmentRegistry,
    *,
    follows_log: bool = True,
    progress: Progress | None = None,
) -> SegmentView:
    """A segment file of a snapshot whose ``head`` has been read; nothing points to it, and all of it was checked.

    With ``follows_log`` False its position is 0 of no log. A crash leaves a segment file that nothing points to, for
    the watchdog, or one that ends in ``.pending``, which the next call removes, or the watchdog.

    :raises CorruptSnapshotError: if the snapshot is damaged or cut. :raises SharedMemoryError: if there is no room.
    """
    name = SegmentName.first(head.schema.__name__)
    owner, path = registry.node.identity, registry.shm_dir / str(name)
    mapping.remove_unfinished(registry.shm_dir, head.schema.__name__, owner)
    image = _checked_image(source, head, progress)
    access = Access.for_group(registry.shm_group)
    pending = mapping.PendingFile(path, head.image_bytes, owner=owner, access=access, image=image)
    try:
        memory = pending.mapping.memory
        rename(memory, name, owner)
        if not follows_log:
            header = header_of(memory)
            for part in ("log_identity", "position", "confirmed_ns"):
                header["partitions"][part] = 0
        pending.publish()
    except BaseException:
        pending.discard()
        raise
    try:
        return SegmentView.attach(path, None, writable=True, populate=False)
    except BaseException as error:
        mapping.unlink(path)
        if isinstance(error, CorruptSegmentError):
            raise CorruptSnapshotError(f"{source.name} holds no segment of this release: {error}") from error
        raise


def _checked_image(source: Source, head: Head, progress: Progress | None) -> Iterator[memoryview]:
    """The image in blocks, each good until the next; it ends well only if the trailer confirms the whole."""
    from xxhash import xxh3_128

    digest, block, total = xxh3_128(head.raw), memoryview(bytearray(_BLOCK_BYTES)), head.image_bytes
    yield memoryview(head.raw)
    done = len(head.raw)
    while done < total:
        part = _filled(source, block[: total - done])
        digest.update(part)
        yield part
        done += len(part)
        if progress is not None:
            progress(done, total)
    _check_trailer(source, head, digest.digest())


def _check_trailer(source: Source, head: Head, digest: bytes) -> None:
    raw = bytes(_filled(source, memoryview(bytearray(TRAILER_BYTES))))
    magic, stated, expected, _, _, _, crc, _ = _TRAILER.unpack(raw)
    if magic != MAGIC:
        raise CorruptSnapshotError(f"{source.name} is no snapshot, or is cut short: it ends with {raw[:8]!r}")
    computed = zlib.crc32(raw[:_CHECKED_BYTES])
    if crc != computed or stated != head.image_bytes:
        raise CorruptSnapshotError(
            f"{source.name} is damaged: checksum {crc:#010x}, computed {computed:#010x}; image of {stated} bytes, "
            f"the file has {head.image_bytes}"
        )
    if digest != expected:
        raise CorruptSnapshotError(f"{source.name} is damaged: checksum {digest.hex()}, expected {expected.hex()}")
    if source.read_into(memoryview(bytearray(1))):
        raise CorruptSnapshotError(f"{source.name} is damaged: bytes follow its trailer")


def _filled(source: Source, into: memoryview) -> memoryview:
    """``into``, filled. :raises CorruptSnapshotError: if the source ends before."""
    done = 0
    while done < len(into):
        count = source.read_into(into[done:])
        if not count:
            raise CorruptSnapshotError(f"{source.name} is cut short: it ends before its {source.size} bytes")
        done += count
    return into


def _paced(pace: Pace, row_bytes: int) -> Any:
    before = 0

    def copied(rows: int) -> None:
        nonlocal before
        pace.spend((rows - before) * row_bytes)
        before = rows

    return copied
