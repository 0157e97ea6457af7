"""Messages between a remote store and ``quorin serve``: one record batch as a stream of Arrow's IPC format.

What is not a column is JSON in the metadata of the schema, under the key ``quorin``. What arrives is checked before it
is used: a message cannot make its reader allocate more than the message has bytes, nor read outside of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from quorin import errors

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
ONLINE_FEATURES, READ, WRITE = "/get-online-features", "/quorin/read", "/quorin/write"
METADATA = b"quorin"

_REFUSALS = (
    errors.EntityIdError,
    errors.EntityIdTooLongError,
    errors.InvalidRowError,
    errors.LogFullError,
    errors.SchemaError,
    errors.SegmentNotFoundError,
)
ERRORS: dict[str, type[errors.QuorinError]] = {kind.__name__: kind for kind in _REFUSALS}
"""What the server refuses and the client raises again."""

_HEADER_FIELD, _COMPRESSION_FIELD = 2, 3
"""The numbers of the fields ``header`` of ``Message`` and ``compression`` of ``RecordBatch`` in Arrow's IPC format."""


class BadMessageError(ValueError):
    """Bytes that are not a message; the text says what was expected."""


def encoded(batch: pa.RecordBatch) -> bytes:
    """A record batch as a stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def message(columns: Mapping[str, pa.Array], **about: Any) -> bytes:
    """Columns of equal length and what the JSON says, as a stream."""
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    schema = pa.schema(fields, metadata={METADATA: json.dumps(about)})
    return encoded(pa.record_batch([*columns.values()], schema=schema))


def decoded(body: bytes) -> tuple[pa.RecordBatch, dict[str, Any]]:
    """The record batch of a stream, valid in all its parts, and the JSON.

    :raises BadMessageError: for anything but one batch without compression and dictionaries, with such metadata.
    """
    try:
        messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
        # Arrow verifies a part by its type, and reads one of an unknown type unverified.
        head = messages.read_next_message()
        if head.type != "schema":
            raise BadMessageError(f"expected a schema first, got {head.type}")
        schema = pa.ipc.read_schema(head)
        part = messages.read_next_message()
        if part.type != "record batch" or _is_compressed(part.metadata):
            raise BadMessageError("expected a record batch without dictionaries and compression")
        batch = pa.ipc.read_record_batch(part, schema)
        batch.validate(full=True)
    except StopIteration:
        raise BadMessageError("expected an Arrow stream of one record batch, got an end") from None
    except (pa.ArrowException, OSError, struct.error) as error:
        raise BadMessageError(f"expected an Arrow stream: {error}") from None
    if _has_more(messages):
        raise BadMessageError("expected one record batch, got more")
    return batch, about(schema)


def answer(body: bytes) -> pa.RecordBatch:
    """The record batch of a stream from a server, which is trusted not to harm.

    :raises BadMessageError: for anything else, such as a stream that was cut off.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            return stream.read_next_batch()
    except (StopIteration, pa.ArrowException, OSError) as error:
        raise BadMessageError(f"expected an Arrow stream: {error or 'no record batch'}") from None


def about(schema: pa.Schema) -> dict[str, Any]:
    """The JSON in the metadata of a schema.

    :raises BadMessageError: if there is none.
    """
    return parsed((schema.metadata or {}).get(METADATA, b""))


def parsed(metadata: bytes) -> dict[str, Any]:
    """:func:`about` of the metadata's value."""
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadMessageError(f"expected a JSON object as the schema's metadata {METADATA.decode()!r}")
    return found


def _has_more(messages: pa.ipc.MessageReader) -> bool:
    try:
        messages.read_next_message()
    except (StopIteration, pa.ArrowException, OSError):
        return False
    return True


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Whether the flatbuffer of a record batch, which Arrow has verified, names a compression.

    pyarrow shows it nowhere, and decompresses whatever size a batch declares.
    """
    data = metadata.to_pybytes()
    (message_table,) = struct.unpack_from("<I", data)
    header = _field(data, message_table, _HEADER_FIELD)
    if header is None:
        return False
    batch_table = header + struct.unpack_from("<I", data, header)[0]
    return _field(data, batch_table, _COMPRESSION_FIELD) is not None


def _field(data: bytes, table: int, number: int) -> int | None:
    """The position of a field of a flatbuffer's table; None if the table lacks it."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    entry = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + entry)[0] if entry < size else 0
    return table + offset if offset else None
