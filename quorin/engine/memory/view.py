"""One attached segment file: its checked header, its schema, and the flat arrays that kernels take.

A view never changes; when a segment grows, :class:`quorin.shm.Segment` swaps its view for the successor's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin import metrics
from quorin.engine.counting import counters
from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import D_COUNTERS, D_HEADER
from quorin.engine.format.name import SegmentName
from quorin.engine.format.partition import Partitioning, ranges
from quorin.engine.memory import file as mapping
from quorin.engine.memory.access import Access
from quorin.engine.memory.filling import hidden_of
from quorin.engine.memory.header import (
    check_counters,
    check_header,
    check_layout,
    header_of,
    partitioning_of,
    write_header,
)
from quorin.engine.memory.plans import describe, vector_plan
from quorin.engine.words import field_text
from quorin.errors import SchemaMismatchError
from quorin.schema import Schema, fingerprint, schema_from_json, schema_to_json, total_element_count

if TYPE_CHECKING:
    from pathlib import Path

_PRIVATE = Access()
_WHOLE = Partitioning()
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
        "aged_plans",
        "column_plans",
        "descriptor",
        "header",
        "is_filling",
        "is_partial",
        "layout",
        "mapping",
        "name",
        "partitioning",
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
        self.header = header_of(mapped.memory)
        self.words = memoryview(mapped.memory[: layout.header_bytes]).cast("Q")  # type: ignore[arg-type]
        self.partitioning = partitioning_of(self.header)
        # A partition that is being filled here is shown later; none is hidden again in this file.
        self.is_filling = bool(hidden_of(self.header["partitions"], self.partitioning))
        self.is_partial = self.partitioning.is_partial or self.is_filling
        self.name: str = self.header["name"].decode()
        self.segment_name = SegmentName.parse(self.name)
        self.pinned = pinned
        self.descriptor = describe(mapped.address, layout, self.header["seed"])
        if pinned:
            self.descriptor[D_HEADER] = _NO_SUCCESSOR.ctypes.data
        self.descriptor[D_COUNTERS] = counters.cell(schema.__name__)
        self.plan = vector_plan(self.descriptor, stored, schema.fields)
        self.column_plans: dict[Any, Any] = {}
        self.aged_plans: dict[Any, Any] = {}
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
        access: Access = _PRIVATE,
        prefault_rows: int | None = None,
        partitioning: Partitioning = _WHOLE,
    ) -> SegmentView:
        """Build a new, empty segment file; it gets its name when it is whole. ``owner`` is its namespace's identity,
        ``access`` says which users may read it, ``partitioning`` which partitions it holds of how many.

        The memory of the first ``prefault_rows`` rows (all, if left out) is mapped at once; that of the others is
        reserved, and mapped when they are written.

        :raises SharedMemoryError: if ``directory`` has no room for it or can't be written.
        :raises FileExistsError: if there is a file of that name.
        """
        text = schema_to_json(schema).encode()
        layout = fmt.segment_layout(
            schema,
            capacity=capacity,
            max_id_bytes=max_id_bytes,
            schema_bytes=len(text),
            heap_bytes=heap_bytes,
            partition_count=partitioning.count,
        )
        prefault_bytes = None if prefault_rows is None else layout.bytes_of_rows(prefault_rows)
        path = directory / str(name)
        pending = mapping.PendingFile(path, layout.file_bytes, owner=owner, access=access, populate=prefault_bytes)
        try:
            memory = pending.mapping.memory
            write_header(memory, name, schema, layout, owner, partitioning)
            memory[layout.header_bytes : layout.header_bytes + len(text)] = np.frombuffer(text, np.uint8)
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
        header = header_of(mapped.memory)
        check_header(path, mapped.memory, header)
        start = int(header["header_bytes"])
        text = bytes(mapped.memory[start : start + int(header["schema_bytes"])])
        stored = schema_from_json(text.decode())
        layout = fmt.segment_layout(
            stored,
            capacity=int(header["capacity"]),
            max_id_bytes=int(header["max_id_bytes"]),
            schema_bytes=int(header["schema_bytes"]),
            heap_bytes=int(header["heap_bytes"]),
            partition_count=int(header["partition_count"]) or 1,
        )
        check_layout(path, header, layout)
        check_counters(path, mapped.memory, header, layout)
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
        """Ask the writer to look at the log once more after it has released the lease. A caller that finds the lease
        still taken after this call may leave its entries to the writer, or to a process that calls
        :meth:`answers_call` first.
        """
        self.words[_CALLED] = 1

    def answers_call(self) -> bool:
        """Whether the writer was called. Then the caller has to take the lease and look at the log once more, or find
        it taken and call again. Releasing the lease is a barrier: only a process that asks after it sees all calls.
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
    """Rows, bytes, load and who writes: one flat dictionary of plain values, as they are in the header now."""
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
        "pinned": view.pinned,
        "replaced": bool(view.words[_SUCCESSOR]),
        "position": int(header["partitions"]["position"].max()),
        **_partition_stats(view),
        "writer_pid": int(header["writer_pid"]) if int(header["writer_active"]) else None,
        "writer_epoch": int(header["epoch"]),
        "writer_heartbeat_age_seconds": (time.time_ns() - int(header["writer_heartbeat_ns"])) / 1e9,
        "age_seconds": (time.time_ns() - int(header["created_ns"])) / 1e9,
    }


def _partition_stats(view: SegmentView) -> dict[str, Any]:
    """Nothing of a deployment with one partition."""
    partitioning, positions = view.partitioning, view.header["partitions"]["position"]
    if partitioning.count == 1:
        return {}
    return {
        "partitions": partitioning.count,
        "held_partitions": ranges(partitioning.held),
        "positions": {number: int(positions[number]) for number in sorted(partitioning.held)},
    }


_NO_SUCCESSOR = np.zeros(fmt.HEADER_BYTES, np.uint8)
"""What the reads of a pinned view look at to see whether there is a successor."""


def _difference(requested: Schema, stored: Schema) -> str:
    if requested.__name__ != stored.__name__ or requested.version != stored.version:
        found = f"{stored.__name__} version {stored.version}"
        return f"{found}; {requested.__name__} version {requested.version} was requested"
    ours, theirs = ({f.name: f for f in s.fields} for s in (requested, stored))
    parts = [f"{n!r} only in the segment" for n in theirs if n not in ours]
    parts += [f"{n!r} not in the segment" for n in ours if n not in theirs]
    parts += [
        f"{name!r} is {field_text(theirs[name])} there, {field_text(field)} here"
        for name, field in ours.items()
        if name in theirs and field != theirs[name]
    ]
    if requested.tie_breaker != stored.tie_breaker:
        parts.append(f"its tie-breaker is {stored.tie_breaker!r} there, {requested.tie_breaker!r} here")
    if requested.entity != stored.entity:
        parts.append(f"its entity is {stored.entity!r} there, {requested.entity!r} here")
    difference = "; ".join(parts) or "the fields are in another order"
    return f"{requested.__name__} version {requested.version}: {difference}"
