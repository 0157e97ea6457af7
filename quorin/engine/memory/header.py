"""The header of a segment: writing it, and checking what a file has."""

from __future__ import annotations

import secrets
import time
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.log_positions import MAX_CLOSED, first_closed
from quorin.engine.format.name import SegmentName
from quorin.engine.format.partition import Partitioning
from quorin.errors import CorruptSegmentError, PartitionCountError
from quorin.schema import fingerprint, schema_to_json

if TYPE_CHECKING:
    from pathlib import Path

    from quorin.engine.arrays import AnyArray
    from quorin.schema import Schema

_LAYOUT_FIELDS = (
    "format_version", "header_bytes", "capacity", "row_limit", "slot_count", "heap_bytes", "schema_bytes",
    "index_offset", "free_offset", "rows_offset", "heap_offset", "file_bytes", "row_stride", "key_inline",
    "max_id_bytes", "body_bytes",
)  # fmt: skip


def header_of(memory: AnyArray) -> Any:
    """The header at the beginning of a file, as a structured scalar that shows live values.

    ``memory`` has at least the 4096 bytes of the smaller one; whether they are a header is for :func:`check_header`.
    """
    header = memory[: fmt.HEADER_BYTES].view(fmt.HEADER_DTYPE)[0]
    size = int(header["header_bytes"])
    is_whole = size in fmt.HEADER_DTYPES and len(memory) >= size
    return memory[:size].view(fmt.HEADER_DTYPES[size])[0] if is_whole else header


def partitioning_of(header: Any) -> Partitioning:
    """How many partitions the deployment of a segment has, and which the segment holds.

    :raises PartitionCountError: for an invalid count, or partitions that are not below it.
    """
    bits = int.from_bytes(header["held"].tobytes(), "little")
    held = frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)
    return Partitioning(int(header["partition_count"]), held) if header["partition_count"] else Partitioning()


def write_header(
    memory: AnyArray,
    name: SegmentName,
    schema: Schema,
    layout: fmt.SegmentLayout,
    owner: int,
    partitioning: Partitioning,
) -> None:
    """Write the static part of the header of a new file, whose other bytes are zero; ``owner`` is the identity of its
    namespace.
    """
    header = memory[: layout.header_bytes].view(fmt.HEADER_DTYPES[layout.header_bytes])[0]
    header["magic"] = fmt.MAGIC
    header["byte_order"] = fmt.BYTE_ORDER_MARK
    header["fingerprint"] = fingerprint(schema)
    header["schema_version"] = schema.version
    header["seed"] = [secrets.randbits(64), secrets.randbits(64)]
    for field in _LAYOUT_FIELDS:
        header[field] = getattr(layout, field)
    header["created_ns"] = time.time_ns()
    header["name"] = str(name).encode()
    header["owner"] = owner
    if partitioning.count > 1:
        header["partition_count"] = partitioning.count
        bits = sum(1 << number for number in partitioning.held)
        header["held"] = np.frombuffer(bits.to_bytes(header["held"].nbytes, "little"), "<u8")
    header["static_crc"] = _static_crc(memory, schema_bytes=schema_to_json(schema).encode())


def rename(memory: AnyArray, name: SegmentName, owner: int) -> None:
    """Give the segment in ``memory``, whose header is whole, another name and owner; nobody else may use it yet."""
    header = header_of(memory)
    header["name"], header["owner"] = str(name).encode(), owner
    start = int(header["header_bytes"])
    schema_bytes = memory[start : start + int(header["schema_bytes"])].tobytes()
    header["static_crc"] = _static_crc(memory, schema_bytes)


def _static_crc(memory: AnyArray, schema_bytes: bytes) -> int:
    """CRC-32 over the static header, its own four bytes taken as zero, and the schema."""
    static = bytearray(memory[: fmt.STATIC_BYTES].tobytes())
    place = fmt.header_offset("static_crc")
    static[place : place + 4] = bytes(4)
    return zlib.crc32(schema_bytes, zlib.crc32(bytes(static)))


def check_header(path: Path | str, memory: AnyArray, header: Any, *, size: int | None = None) -> None:
    """Check the static part of the header, before the schema behind it is parsed. ``memory`` holds at least header and
    schema; ``size`` is the size of the whole file, if ``memory`` is a part of it.

    :raises CorruptSegmentError: if it is not of this format, or damaged.
    """
    size = len(memory) if size is None else size
    if bytes(memory[:8]) != fmt.MAGIC:
        raise CorruptSegmentError(f"{path} is no segment: it begins with {bytes(memory[:8])!r}, expected {fmt.MAGIC!r}")
    if int(header["byte_order"]) != fmt.BYTE_ORDER_MARK:
        raise CorruptSegmentError(
            f"{path} was written in another byte order: mark {int(header['byte_order']):#010x}, "
            f"expected {fmt.BYTE_ORDER_MARK:#010x}"
        )
    version, header_bytes = int(header["format_version"]), int(header["header_bytes"])
    if version not in fmt.FORMAT_VERSIONS or header_bytes != fmt.header_bytes(version):
        *others, last = map(str, fmt.FORMAT_VERSIONS)
        found = f"format version {version} with a header of {header_bytes} bytes"
        raise CorruptSegmentError(f"{path} has {found}, this Quorin reads {', '.join(others)} and {last}")
    schema_end = header_bytes + int(header["schema_bytes"])
    if int(header["file_bytes"]) != size or schema_end > len(memory):
        raise CorruptSegmentError(f"{path} has {size} bytes, its header says {int(header['file_bytes'])}")
    crc = _static_crc(memory, bytes(memory[header_bytes:schema_end]))
    if int(header["static_crc"]) != crc:
        raise CorruptSegmentError(f"{path}: header checksum {int(header['static_crc']):#010x}, computed {crc:#010x}")
    if SegmentName.match(header["name"].decode("ascii", "replace")) is None:
        raise CorruptSegmentError(f"{path}: {header['name']!r} is no segment name")
    try:
        count = partitioning_of(header).count
    except PartitionCountError as error:
        raise CorruptSegmentError(f"{path}: {error}") from error
    if (count > 1) != (version == fmt.PARTITIONED_VERSION):
        raise CorruptSegmentError(f"{path}: format version {version} with {count} partitions")


def check_layout(path: Path, header: Any, layout: fmt.SegmentLayout) -> None:
    """Compare the sizes and offsets in the header with those that the schema results in. :raises CorruptSegmentError:
    if one differs.
    """
    for field in _LAYOUT_FIELDS:
        if int(header[field]) != getattr(layout, field):
            raise CorruptSegmentError(
                f"{path}: header says {field}={int(header[field])}, the schema needs {getattr(layout, field)}"
            )


def check_counters(path: Path, memory: AnyArray, header: Any, layout: fmt.SegmentLayout) -> None:
    """What changes with every write has no checksum, but it has bounds; what is reserved is zero."""
    # A writer moves both on meanwhile, the head never past the tail: so the tail is read between two looks at the head.
    before, tail, after = (int(header[word]) for word in ("ring_head", "ring_tail", "ring_head"))
    resting = max(0, tail - after) if tail >= before else tail - before
    bounds = {
        "entity_count": (int(header["entity_count"]), layout.capacity),
        "deleted_count": (int(header["deleted_count"]), layout.capacity),
        "rows_fresh": (int(header["rows_fresh"]), layout.row_limit),
        "ring_tail - ring_head": (resting, layout.row_limit),
        "heap_used": (int(header["heap_used"]), layout.heap_bytes),
        "heap_garbage": (int(header["heap_garbage"]), layout.heap_bytes),
        "writer_active": (int(header["writer_active"]), 1),
        "writer_called": (int(header["writer_called"]), 1),
    }
    for name, (value, most) in bounds.items():
        if not 0 <= value <= most:
            raise CorruptSegmentError(f"{path}: {name} is {value}, expected 0 to {most}")
    generation, successor = SegmentName.parse(header["name"].decode()).generation, int(header["successor"])
    if successor and successor <= generation:
        raise CorruptSegmentError(f"{path}: generation {generation} names {successor} as its successor")
    for start, end in fmt.RESERVED[layout.header_bytes]:
        if memory[start:end].any():
            raise CorruptSegmentError(f"{path}: bytes {start} to {end} of the header are reserved, and not zero")
    if layout.partition_count > 1:
        _check_closed(path, header["closed"], layout.partition_count)


def _check_closed(path: Path, table: AnyArray, partition_count: int) -> None:
    """Only logs of fewer partitions were closed, and only a log has a position."""
    numbers = first_closed(partition_count) + np.arange(MAX_CLOSED)
    has_none = (numbers == 0) | (numbers >= partition_count)
    wrong = (has_none & (table["log_identity"] != 0)) | ((table["log_identity"] == 0) & (table["position"] != 0))
    if wrong.any():
        raise CorruptSegmentError(f"{path}: entry {int(wrong.argmax())} of the table of closed logs belongs to none")
