"""One attached segment file: its checked header, its schema, and the flat arrays that kernels take.

A view never changes; when a segment grows, :class:`quorin.shm.Segment` swaps its view for the successor's.
"""

from __future__ import annotations

import secrets
import time
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin import metrics
from quorin.engine.counting import counters
from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    CONSTANT,
    D_BODY_BYTES,
    D_BODY_OFFSET,
    D_CAPACITY,
    D_COUNTERS,
    D_FREE,
    D_HEADER,
    D_HEAP,
    D_HEAP_BYTES,
    D_INDEX,
    D_KEY_INLINE,
    D_MAX_ID_BYTES,
    D_ROW_LIMIT,
    D_ROW_STRIDE,
    D_ROWS,
    D_SEED_0,
    D_SEED_1,
    D_SLOT_COUNT,
    DESCRIPTOR_ITEMS,
    MISSING_FLOAT32,
    SPAN_CODE,
    SPAN_COUNT,
    SPAN_SOURCE,
)  # fmt: skip
from quorin.engine.format.name import SegmentName
from quorin.engine.memory import file as mapping
from quorin.engine.rows.compatibility import fits
from quorin.engine.words import field_text
from quorin.errors import CorruptSegmentError, SchemaMismatchError
from quorin.schema import FeatureField, Schema, fingerprint, schema_from_json, schema_to_json, total_element_count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SUCCESSOR = fmt.header_word("successor")
_CALLED = fmt.header_word("writer_called")
_ENTITY_COUNT, _DELETED_COUNT = fmt.header_word("entity_count"), fmt.header_word("deleted_count")
_ROWS_FRESH = fmt.header_word("rows_fresh")
_RING_HEAD, _RING_TAIL = fmt.header_word("ring_head"), fmt.header_word("ring_tail")


class SegmentView:
    """A segment file, mapped and checked. ``header`` is a structured scalar view that shows live values, and ``words``
    are its 64-bit words, ten times as quick to get at.

    ``stored`` is the schema of the rows in the file, ``schema`` the one through which they are read: the same, or an
    older version of it, whose fields are found by name (see :meth:`through`).
    """

    __slots__ = (
        "column_plans",
        "descriptor",
        "header",
        "layout",
        "mapping",
        "name",
        "pinned",
        "plan",
        "schema",
        "segment_name",
        "stored",
        "vector_length",
        "words",
    )

    def __init__(
        self,
        mapped: mapping.Mapping,
        stored: Schema,
        layout: fmt.SegmentLayout,
        schema: Schema | None = None,
        *,
        pinned: bool = False,
    ) -> None:
        self.mapping = mapped
        self.stored = stored
        self.schema = schema = stored if schema is None else schema
        self.layout = layout
        self.header = mapped.memory[: fmt.HEADER_BYTES].view(fmt.HEADER_DTYPE)[0]
        self.words = memoryview(mapped.memory[: fmt.HEADER_BYTES]).cast("Q")  # type: ignore[arg-type]
        self.name: str = self.header["name"].decode()
        self.segment_name = SegmentName.parse(self.name)
        self.pinned = pinned
        self.descriptor = _describe(mapped.address, layout, self.header["seed"])
        if pinned:
            self.descriptor[D_HEADER] = _NO_SUCCESSOR.ctypes.data
        self.descriptor[D_COUNTERS] = counters.cell(schema.__name__)
        self.plan = vector_plan(self, schema.fields)
        self.column_plans: dict[Any, Any] = {}
        self.vector_length = total_element_count(schema)

    @classmethod
    def create(
        cls,
        directory: Path,
        name: SegmentName,
        schema: Schema,
        *,
        capacity: int,
        max_id_bytes: int,
        heap_bytes: int,
        owner: int = 0,
        rows_soon: int | None = None,
    ) -> SegmentView:
        """Build a new, empty segment file; it gets its name when it is whole. ``owner`` is its namespace's identity.

        ``rows_soon`` says how many rows are written at once, if not as many as there is room for: the memory of others
        is reserved, and mapped when they are written.

        :raises SharedMemoryError: if ``directory`` has no room for it or can't be written.
        :raises FileExistsError: if there is a file of that name.
        """
        text = schema_to_json(schema).encode()
        layout = fmt.segment_layout(
            schema, capacity=capacity, max_id_bytes=max_id_bytes, schema_bytes=len(text), heap_bytes=heap_bytes
        )
        soon = None if rows_soon is None else layout.bytes_of_rows(rows_soon)
        pending = mapping.PendingFile(directory / str(name), layout.file_bytes, owner=owner, populate=soon)
        try:
            memory = pending.mapping.memory
            _write_header(memory, name, schema, layout, owner)
            memory[fmt.HEADER_BYTES : fmt.HEADER_BYTES + len(text)] = np.frombuffer(text, np.uint8)
            return cls(pending.publish(), schema, layout)
        except BaseException:
            pending.discard()
            raise

    @classmethod
    def attach(cls, path: Path, schema: Schema | None, *, writable: bool, populate: bool = True) -> SegmentView:
        """Map and check a segment file. With ``schema`` None the schema is the one that the file carries.

        :raises SegmentNotFoundError: if there is no such file. :raises CorruptSegmentError: if it is not a segment of
            this format, or damaged. :raises SchemaMismatchError: if it holds rows of another schema, and not of a newer
            version of it.
        """
        mapped = mapping.attach(path, writable=writable, least_bytes=fmt.HEADER_BYTES, populate=populate)
        header = mapped.memory[: fmt.HEADER_BYTES].view(fmt.HEADER_DTYPE)[0]
        _check_header(path, mapped.memory, header)
        text = bytes(mapped.memory[fmt.HEADER_BYTES : fmt.HEADER_BYTES + int(header["schema_bytes"])])
        stored = schema_from_json(text.decode())
        layout = fmt.segment_layout(
            stored,
            capacity=int(header["capacity"]),
            max_id_bytes=int(header["max_id_bytes"]),
            schema_bytes=int(header["schema_bytes"]),
            heap_bytes=int(header["heap_bytes"]),
        )
        _check_layout(path, header, layout)
        _check_counters(path, mapped.memory, header, layout)
        metrics.attaches.labels(stored.__name__).inc()
        return cls(mapped, stored, layout).through(schema)

    def through(self, schema: Schema | None) -> SegmentView:
        """The same file, read through a schema: its own, or an older version. None changes nothing.

        Fields match by name. One that was widened since reads as it is stored, one that was dropped reads as null.

        :raises SchemaMismatchError: for another name, a newer version, or other fields of the same version.
        """
        if schema is None or schema is self.schema:
            return self
        if fingerprint(schema) == int(self.header["fingerprint"]):
            return SegmentView(self.mapping, schema, self.layout)
        if schema.__name__ != self.stored.__name__ or schema.version >= self.stored.version:
            difference = _difference(schema, self.stored)
            raise SchemaMismatchError(f"{self.path} holds rows of another schema: {difference}")
        return SegmentView(self.mapping, self.stored, self.layout, schema)

    def staying(self) -> SegmentView:
        """The same file, for reads that stay in it when a successor takes its place."""
        return SegmentView(self.mapping, self.stored, self.layout, self.schema, pinned=True)

    @property
    def path(self) -> Path:
        """Where the file is, or was."""
        return self.mapping.path

    @property
    def generation(self) -> int:
        """How many files the segment has been, this one included."""
        return self.segment_name.generation

    @property
    def successor_name(self) -> str | None:
        """The segment that took this one's place, if one did and this view may go there."""
        if self.pinned:
            return None
        generation = self.words[_SUCCESSOR]
        return str(self.segment_name.at(generation)) if generation else None

    @property
    def books_add_up(self) -> bool:
        """Whether every row that was ever used is a live one, a deleted one or a free one; true between two writes."""
        words = self.words
        resting = words[_RING_TAIL] - words[_RING_HEAD]
        return words[_ENTITY_COUNT] + words[_DELETED_COUNT] + resting == words[_ROWS_FRESH]

    def call_writer(self) -> None:
        """Ask the writer to look at the log once more when it lets go of the lease. Who finds the lease still taken
        after that may leave its entries to that writer, or to whoever :meth:`answers_call` before it.
        """
        self.words[_CALLED] = 1

    def answers_call(self) -> bool:
        """Whether the writer was called: then the caller has to take the lease and look at the log once more, or find
        it taken and call again. Only one who asks after letting go of the lease, which is a barrier, sees all calls.
        """
        if not self.words[_CALLED]:
            return False
        self.words[_CALLED] = 0
        return True

    @property
    def was_in_force(self) -> bool:
        """Whether this generation ever had a writer; one that never had may be an attempt that came too late."""
        return int(self.header["epoch"]) > 0


def segment_stats(view: SegmentView) -> dict[str, Any]:
    """Rows, bytes, load and who writes: one flat dictionary of plain values, as they stand in the header now."""
    header = view.header
    rows, deleted = int(header["entity_count"]), int(header["deleted_count"])
    return {
        "name": view.name,
        "path": str(view.path),
        "schema": view.schema.__name__,
        "schema_version": view.stored.version,
        "rows": rows,
        "deleted_rows": deleted,
        "capacity": view.layout.capacity,
        "load": (rows + deleted) / view.layout.capacity,
        "bytes": view.layout.file_bytes,
        "row_bytes": view.layout.row_stride,
        "heap_bytes": view.layout.heap_bytes,
        "heap_used_bytes": int(header["heap_used"]),
        "heap_garbage_bytes": int(header["heap_garbage"]),
        "generation": view.generation,
        "position": int(header["partitions"][0]["position"]),
        "writer_pid": int(header["writer_pid"]) if int(header["writer_active"]) else None,
        "writer_epoch": int(header["epoch"]),
        "writer_heartbeat_age_seconds": (time.time_ns() - int(header["writer_heartbeat_ns"])) / 1e9,
        "age_seconds": (time.time_ns() - int(header["created_ns"])) / 1e9,
    }


_NO_SUCCESSOR = np.zeros(fmt.HEADER_BYTES, np.uint8)
"""What the reads of a pinned view look at to see whether there is a successor."""


def vector_plan(view: SegmentView, fields: Sequence[FeatureField]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The read plan that fills a float32 vector with ``fields``, in the order given.

    Fields of one dtype that are neighbours both in the row and in the vector become one span. Fields that are not
    stored (any more) read as their default.
    """
    cells = {cell.field.name: cell for cell in fmt.body_layout(view.stored).cells}
    body = view.layout.body_offset
    spans: list[list[int]] = []
    patches: list[tuple[int, ...]] = []
    target, out_bytes = 0, 4 * sum(field.element_count for field in fields)
    for field in fields:
        count = field.element_count
        if not count:
            continue
        default_bits = int(np.float32(field.vector_default).view(np.uint32))
        cell = cells.get(field.name)
        if cell is None or not fits(cell.field, field):
            spans.append([default_bits, target, out_bytes, count, CONSTANT])
            target += 4 * count
            continue
        source, code = body + cell.offset, cell.field.dtype
        last = spans[-1] if spans else None
        if last and last[SPAN_CODE] == code and last[SPAN_SOURCE] + last[SPAN_COUNT] * code.item_size == source:
            last[SPAN_COUNT] += count
        else:
            spans.append([source, target, out_bytes, count, int(code)])
        patches.append((body + cell.null_byte, cell.null_mask, target, out_bytes, count, default_bits))
        target += 4 * count
    return read_plan(view, out_bytes, spans, patches, MISSING_FLOAT32)


def read_plan(
    view: SegmentView, out_bytes: int, spans: list[list[int]], patches: list[tuple[int, ...]], missing: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A read plan as :mod:`quorin.engine.format.abi` lays it out; ``out_bytes`` is what a row takes in the output."""
    head = np.array([out_bytes, len(spans), len(patches), missing], np.int64)
    tail = [np.array(part, np.int64).ravel() for part in (spans, patches)]
    return np.concatenate([view.descriptor, head, *tail])


def _describe(address: int, layout: fmt.SegmentLayout, seed: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    words = np.zeros(DESCRIPTOR_ITEMS, np.int64)
    words[D_HEADER] = address
    words[D_INDEX] = address + layout.index_offset
    words[D_SLOT_COUNT] = layout.slot_count
    words[D_ROWS] = address + layout.rows_offset
    words[D_ROW_STRIDE] = layout.row_stride
    words[D_HEAP] = address + layout.heap_offset
    words[D_HEAP_BYTES] = layout.heap_bytes
    words[D_SEED_0 : D_SEED_1 + 1] = seed.view(np.int64)
    words[D_KEY_INLINE] = layout.key_inline
    words[D_BODY_OFFSET] = layout.body_offset
    words[D_BODY_BYTES] = layout.body_bytes
    words[D_FREE] = address + layout.free_offset
    words[D_ROW_LIMIT] = layout.row_limit
    words[D_CAPACITY] = layout.capacity
    words[D_MAX_ID_BYTES] = layout.max_id_bytes
    return words


def _write_header(
    memory: np.ndarray[Any, Any], name: SegmentName, schema: Schema, layout: fmt.SegmentLayout, owner: int
) -> None:
    header = memory[: fmt.HEADER_BYTES].view(fmt.HEADER_DTYPE)[0]
    header["magic"] = fmt.MAGIC
    header["byte_order"] = fmt.BYTE_ORDER_MARK
    header["format_version"] = fmt.FORMAT_VERSION
    header["header_bytes"] = fmt.HEADER_BYTES
    header["fingerprint"] = fingerprint(schema)
    header["schema_version"] = schema.version
    header["seed"] = [secrets.randbits(64), secrets.randbits(64)]
    for field in _LAYOUT_FIELDS:
        header[field] = getattr(layout, field)
    header["created_ns"] = time.time_ns()
    header["name"] = str(name).encode()
    header["owner"] = owner
    header["static_crc"] = _static_crc(memory, schema_bytes=schema_to_json(schema).encode())


_LAYOUT_FIELDS = (
    "capacity", "row_limit", "slot_count", "heap_bytes", "schema_bytes", "index_offset", "free_offset", "rows_offset",
    "heap_offset", "file_bytes", "row_stride", "key_inline", "max_id_bytes", "body_bytes",
)  # fmt: skip


def rename(memory: np.ndarray[Any, Any], name: SegmentName, owner: int) -> None:
    """Give the segment in ``memory``, whose header is whole, another name and owner; nobody else may use it yet."""
    header = memory[: fmt.HEADER_BYTES].view(fmt.HEADER_DTYPE)[0]
    header["name"], header["owner"] = str(name).encode(), owner
    schema_bytes = memory[fmt.HEADER_BYTES : fmt.HEADER_BYTES + int(header["schema_bytes"])].tobytes()
    header["static_crc"] = _static_crc(memory, schema_bytes)


def _static_crc(memory: np.ndarray[Any, Any], schema_bytes: bytes) -> int:
    """CRC-32 over the static header, its own four bytes taken as zero, and the schema."""
    static = bytearray(memory[: fmt.STATIC_BYTES].tobytes())
    place = fmt.header_offset("static_crc")
    static[place : place + 4] = bytes(4)
    return zlib.crc32(schema_bytes, zlib.crc32(bytes(static)))


def _check_header(path: Path, memory: np.ndarray[Any, Any], header: Any) -> None:
    if bytes(memory[:8]) != fmt.MAGIC:
        raise CorruptSegmentError(f"{path} is no segment: it begins with {bytes(memory[:8])!r}, expected {fmt.MAGIC!r}")
    if int(header["byte_order"]) != fmt.BYTE_ORDER_MARK:
        raise CorruptSegmentError(
            f"{path} was written in another byte order: mark {int(header['byte_order']):#010x}, "
            f"expected {fmt.BYTE_ORDER_MARK:#010x}"
        )
    if int(header["format_version"]) != fmt.FORMAT_VERSION or int(header["header_bytes"]) != fmt.HEADER_BYTES:
        raise CorruptSegmentError(
            f"{path} has format version {int(header['format_version'])}, this Quorin reads {fmt.FORMAT_VERSION}"
        )
    schema_end = fmt.HEADER_BYTES + int(header["schema_bytes"])
    if int(header["file_bytes"]) != len(memory) or schema_end > len(memory):
        raise CorruptSegmentError(f"{path} has {len(memory)} bytes, its header says {int(header['file_bytes'])}")
    crc = _static_crc(memory, bytes(memory[fmt.HEADER_BYTES : schema_end]))
    if int(header["static_crc"]) != crc:
        raise CorruptSegmentError(f"{path}: header checksum {int(header['static_crc']):#010x}, computed {crc:#010x}")
    if SegmentName.match(header["name"].decode("ascii", "replace")) is None:
        raise CorruptSegmentError(f"{path}: {header['name']!r} is no segment name")


def _check_layout(path: Path, header: Any, layout: fmt.SegmentLayout) -> None:
    for field in _LAYOUT_FIELDS:
        if int(header[field]) != getattr(layout, field):
            raise CorruptSegmentError(
                f"{path}: header says {field}={int(header[field])}, the schema needs {getattr(layout, field)}"
            )


def _check_counters(path: Path, memory: np.ndarray[Any, Any], header: Any, layout: fmt.SegmentLayout) -> None:
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
    for start, end in fmt.RESERVED:
        if memory[start:end].any():
            raise CorruptSegmentError(f"{path}: bytes {start} to {end} of the header are reserved, and not zero")


def _difference(asked: Schema, stored: Schema) -> str:
    if asked.__name__ != stored.__name__ or asked.version != stored.version:
        return f"it is {stored.__name__} version {stored.version}, asked for {asked.__name__} version {asked.version}"
    ours, theirs = ({f.name: f for f in s.fields} for s in (asked, stored))
    parts = [f"{n!r} only in the segment" for n in theirs if n not in ours]
    parts += [f"{n!r} not in the segment" for n in ours if n not in theirs]
    parts += [
        f"{name!r} is {field_text(theirs[name])} there, {field_text(field)} here"
        for name, field in ours.items()
        if name in theirs and field != theirs[name]
    ]
    if asked.tie_breaker != stored.tie_breaker:
        parts.append(f"its tie-breaker is {stored.tie_breaker!r} there, {asked.tie_breaker!r} here")
    if asked.entity != stored.entity:
        parts.append(f"its entity is {stored.entity!r} there, {asked.entity!r} here")
    return f"{asked.__name__} version {asked.version}: " + ("; ".join(parts) or "the fields stand in another order")
