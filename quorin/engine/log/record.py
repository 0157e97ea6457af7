"""The record: what one entry of the log holds, as bytes.

An entry carries many rows of one schema as one Arrow record batch. All integers are little-endian::

    byte  0        4      5     6           8            16           24     28     32
          +--------+------+-----+-----------+------------+------------+------+------+------
          | "QREC" | ver. | kind| name size | fingerprint| written at | rows | crc  | name…
          | 4 s    | u1   | u1  | u2        | u8         | i8 ns      | u4   | u4   |
          +--------+------+-----+-----------+------------+------------+------+------+------

The schema's name (UTF-8) is padded with zeros to a multiple of 8 bytes, so that Arrow's buffers stay aligned. In
records of loads (kinds from 4 on), 16 bytes follow: the load's id, and for a commit the number of the load's rows, both
i8. Then there are two Arrow IPC messages: the batch's schema and the batch. The checksum is the CRC-32 of all bytes but
its own four. "Written at" is when the producer created the record, in ns since the epoch; event times are in the batch.

The fingerprint tells whether the writer's schema is the reader's own; if not, :func:`translate` maps by field name.
"""

from __future__ import annotations

import enum
import struct
import time
import zlib
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.types as pt

from quorin.engine.rows.batch import DELETE_SCHEMA, canonical_schema, fields_by_name, subset_schema
from quorin.engine.rows.column import cast_field, text_lengths
from quorin.engine.rows.compatibility import WIDENINGS
from quorin.errors import InvalidEntryError, InvalidRowError
from quorin.schema import Schema, fingerprint

MAGIC = b"QREC"
VERSION = 1

_HEADER = struct.Struct("<4sBBHQqI")
_CRC = struct.Struct("<I")
_WRITTEN = struct.Struct("<q")
_LOAD = struct.Struct("<qq")
_KIND_OFFSET = 5
FINGERPRINT_OFFSET, WRITTEN_OFFSET, ROWS_OFFSET, CRC_OFFSET = 8, 16, 24, 28
BODY_OFFSET = CRC_OFFSET + _CRC.size
assert (_HEADER.size, BODY_OFFSET) == (CRC_OFFSET, 32)  # noqa: S101 - the grid above, checked at import

_ARROW_TYPES = {code: pa.from_numpy_dtype(code.numpy) for pair in WIDENINGS for code in pair}
_WIDENINGS = {(_ARROW_TYPES[narrow], _ARROW_TYPES[wide]) for narrow, wide in WIDENINGS}


class Kind(enum.IntEnum):
    """What a record does to the entities it names. The numbers are part of the log's format."""

    upsert = 1
    """Sets whole rows; the batch has every field."""
    delete = 2
    """Deletes entities; the batch has ids and event times only."""
    partial = 3
    """Sets some fields and keeps the others; the batch has only the fields that it sets."""
    load = 4
    """Whole rows of a load, which count from its commit on."""
    begin = 5
    """Begins a load, and ends an earlier one that was not committed. Its id is a position before this record."""
    commit = 6
    """The rows of a load, and what came after its beginning, replace all rows of the schema."""
    abort = 7
    """Ends a load without a commit."""


_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Header:
    """The part of a record that is read without decoding its batch."""

    kind: Kind
    schema_name: str
    fingerprint: int
    written_ns: int
    row_count: int


@dataclass(frozen=True, slots=True)
class Record(Header):
    """A decoded record. The batch's ids and times are checked; its fields are as the writer's schema had them.

    ``load`` is the id of the load that it belongs to; 0 for none.
    """

    batch: pa.RecordBatch
    load: int = 0


def encode(
    kind: Kind,
    schema: Schema,
    batch: pa.RecordBatch,
    *,
    written_ns: int | None = None,
    load: int = 0,
    load_rows: int = 0,
) -> bytes:
    """A record as bytes. ``batch`` is canonical (see :mod:`quorin.engine.rows.batch`) for its kind; ``written_ns`` None
    means now. ``load`` and ``load_rows`` are for records of loads: the id, and the number of all of its rows.
    """
    name = schema.__name__.encode()
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        kind,
        len(name),
        fingerprint(schema),
        time.time_ns() if written_ns is None else written_ns,
        batch.num_rows,
    )
    padded_name = name + b"\0" * (-len(name) % 8) + (_LOAD.pack(load, load_rows) if kind >= Kind.load else b"")
    arrow_schema, arrow_batch = _schema_message(batch.schema), batch.serialize()
    crc = zlib.crc32(arrow_batch, zlib.crc32(arrow_schema, zlib.crc32(padded_name, zlib.crc32(header))))
    return b"".join((header, _CRC.pack(crc), padded_name, arrow_schema, arrow_batch))


def peek(payload: bytes | memoryview) -> Header:
    """The header of a record; neither the checksum nor the batch is read.

    :raises InvalidEntryError: if the bytes do not begin with a header of this version.
    """
    header, _ = _header_of(memoryview(payload))
    return header


def decode(payload: bytes | memoryview) -> Record:
    """A record from its bytes. Its columns are views of ``payload``, not copies.

    :raises InvalidEntryError: for bytes that :func:`encode` cannot have written: damaged, truncated, of another
        version, with missing or null ids or times, or with buffers that Arrow rejects.
    """
    view = memoryview(payload)
    header, start = _header_of(view)
    crc, stored = _checksums(view)
    if crc != stored:
        raise InvalidEntryError(
            f"a record of {len(view)} bytes is damaged: checksum {crc:#010x}, expected {stored:#010x}"
        )
    batch = _decode_batch(view[start:])
    _check_batch(header, batch)
    load = load_of(payload)[0] if header.kind >= Kind.load else 0
    return Record(header.kind, header.schema_name, header.fingerprint, header.written_ns, header.row_count, batch, load)


def mark(kind: Kind, schema: Schema, *, load: int = 0, load_rows: int = 0) -> bytes:
    """A record without rows that begins, commits or aborts a load."""
    return encode(kind, schema, pa.RecordBatch.from_pylist([], DELETE_SCHEMA), load=load, load_rows=load_rows)


def is_of_load(payload: bytes) -> bool:
    """Whether a record begins, fills, commits or aborts a load; True also for kinds that are not known here."""
    return len(payload) > _KIND_OFFSET and payload[_KIND_OFFSET] >= Kind.load


def load_of(payload: bytes | memoryview) -> tuple[int, int]:
    """The load's id and, of a commit, the number of its rows, in a record of a load whose header was read."""
    view = memoryview(payload)
    name_size = _HEADER.unpack_from(view)[3]
    load, rows = _LOAD.unpack_from(view, BODY_OFFSET + (name_size + 7) // 8 * 8)
    return load, rows


def fingerprint_bytes(payload: bytes) -> bytes:
    """The fingerprint in a record's header as bytes, whatever else the record holds."""
    return payload[FINGERPRINT_OFFSET:WRITTEN_OFFSET]


def written_at(payload: bytes) -> int:
    """When a record was created, in nanoseconds since the epoch."""
    written_ns: int = _WRITTEN.unpack_from(payload, WRITTEN_OFFSET)[0]
    return written_ns


def is_sealed(payload: bytes) -> bool:
    """Whether a record's checksum is right."""
    crc, stored = _checksums(memoryview(payload))
    return crc == stored


def batch_in(payload: bytes) -> pa.RecordBatch:
    """The batch of a record whose other parts were checked. :raises InvalidEntryError: if the batch is invalid."""
    view = memoryview(payload)
    return _decode_batch(view[_header_of(view)[1] :])


def translate(record: Record, schema: Schema) -> pa.RecordBatch:
    """The record's batch in the canonical form of ``schema``, for a writer whose schema may be older or newer.

    Fields match by name. Fields that only the record has are dropped; fields that only ``schema`` has are null (left
    out of a partial record). Types may widen, never narrow.

    :raises InvalidEntryError: for a record of a schema with another name, or a field whose type does not fit.
    """
    if record.schema_name != schema.__name__:
        raise InvalidEntryError(f"a record of schema {record.schema_name!r} is no record of {schema.__name__!r}")
    return translate_batch(record.batch, record.kind, schema)


def translate_batch(batch: pa.RecordBatch, kind: int, schema: Schema) -> pa.RecordBatch:
    """A batch that is canonical for another version of the schema, in the canonical form of ``schema``, as
    :func:`translate` does it. ``kind`` is a :class:`Kind`.
    """
    if kind == Kind.delete:
        return batch.select([0, 1])
    canonical = canonical_schema(schema)
    if kind in (Kind.upsert, Kind.load) and batch.schema.equals(canonical):
        return batch
    fields, tie_breaker = fields_by_name(schema), schema.tie_breaker
    if kind == Kind.partial:
        present = set(batch.schema.names).intersection(fields)
        # The tie-breaker belongs to the event, so a row without it has a null one, not the previous event's.
        fields = {name: field for name, field in fields.items() if name in present or (present and name == tie_breaker)}
        canonical = subset_schema(schema, fields)
    columns = [batch.column(0), batch.column(1)]
    for name, field in fields.items():
        target = canonical.field(name).type
        if name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, target))
            continue
        column = batch.column(name)
        if not _widens(column.type, target):
            raise InvalidEntryError(
                f"schema {schema.__name__!r}: field {name!r} has type {column.type} in the log, expected {target}"
            )
        try:
            columns.append(cast_field(column, field))
        except InvalidRowError as error:
            raise InvalidEntryError(f"schema {schema.__name__!r}: {error}") from error
    return pa.RecordBatch.from_arrays(columns, schema=canonical)


@lru_cache(maxsize=256)
def _schema_message(arrow_schema: pa.Schema) -> bytes:
    return arrow_schema.serialize().to_pybytes()  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def _parsed_schema_message(message: bytes) -> pa.Schema:
    """The batch's Arrow schema. :raises InvalidEntryError: unless it begins with ids and times, each name once."""
    arrow_schema = pa.ipc.read_schema(pa.py_buffer(message))
    names, types = arrow_schema.names, arrow_schema.types  # Only now does Arrow check that names are UTF-8.
    if names[:2] != DELETE_SCHEMA.names or types[:2] != DELETE_SCHEMA.types:
        raise InvalidEntryError(f"a record begins with the columns {DELETE_SCHEMA.names}, got {names[:2]}")
    if len(set(names)) != len(names):
        raise InvalidEntryError(f"a record has a column twice: {names}")
    return arrow_schema


def _header_of(view: memoryview) -> tuple[Header, int]:
    """The header, and the offset of the Arrow messages."""
    if len(view) < BODY_OFFSET:
        raise InvalidEntryError(f"a record has at least {BODY_OFFSET} bytes, got {len(view)}")
    magic, version, kind, name_size, schema_fingerprint, written_ns, row_count = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise InvalidEntryError(f"a record begins with {MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise InvalidEntryError(f"record version {version} is not known here, expected {VERSION}")
    if kind not in _KINDS:
        raise InvalidEntryError(f"record kind {kind} is not known, expected one of {list(_KINDS)}")
    try:
        name = str(view[BODY_OFFSET : BODY_OFFSET + name_size], "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidEntryError(f"a record's schema name is no UTF-8: {error}") from error
    start = BODY_OFFSET + (name_size + 7) // 8 * 8 + (_LOAD.size if kind >= Kind.load else 0)
    if start > len(view):
        raise InvalidEntryError(f"a record of {len(view)} bytes is cut short: its batch begins at {start}")
    return Header(_KINDS[kind], name, schema_fingerprint, written_ns, row_count), start


def _checksums(view: memoryview) -> tuple[int, int]:
    """The computed checksum of a record, and the stored one."""
    crc = zlib.crc32(view[BODY_OFFSET:], zlib.crc32(view[: _HEADER.size]))
    return crc, _CRC.unpack_from(view, _HEADER.size)[0]


def _decode_batch(view: memoryview) -> pa.RecordBatch:
    try:
        marker, size = struct.unpack_from("<iI", view)
        if marker != -1 or 8 + size > len(view):
            raise InvalidEntryError("a record's Arrow schema is cut short")
        arrow_schema = _parsed_schema_message(bytes(view[: 8 + size]))
        batch = pa.ipc.read_record_batch(pa.py_buffer(view[8 + size :]), arrow_schema)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, struct.error, ValueError, TypeError) as error:
        if isinstance(error, InvalidEntryError):
            raise
        raise InvalidEntryError(f"a record's Arrow data cannot be decoded: {error}") from error
    return batch


def _check_batch(header: Header, batch: pa.RecordBatch) -> None:
    if batch.num_rows != header.row_count:
        raise InvalidEntryError(f"a record says {header.row_count} rows and has {batch.num_rows}")
    ids, times = batch.column(0), batch.column(1)
    if ids.null_count or times.null_count:
        raise InvalidEntryError(f"a record has {ids.null_count} null ids and {times.null_count} null event times")
    if not text_lengths(ids).all():
        raise InvalidEntryError("a record has an empty entity id")


def _widens(source: pa.DataType, target: pa.DataType) -> bool:
    if source.equals(target) or (source, target) in _WIDENINGS:
        return True
    if pt.is_fixed_size_list(source) and pt.is_fixed_size_list(target) and source.list_size != target.list_size:
        return False
    if pt.is_nested(source) and source.id == target.id and hasattr(source, "value_type"):
        return _widens(source.value_type, target.value_type)
    return False
