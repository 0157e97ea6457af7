"""Streams of Arrow's IPC format from a client, read without taking more memory than they have bytes.

Compressed buffers and dictionaries stand for more bytes than they have, so they are refused before they are read.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from quorin.engine.rows.stream import split_head

_TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_U16, _U32, _I32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")
_HEADER, _COMPRESSION = 2, 3
"""Fields of the FlatBuffers ``Message`` and ``RecordBatch``, by their place in Arrow's ``Message.fbs``."""


class InvalidStreamError(ValueError):
    """Bytes that are no stream, or one that is refused."""


def read_stream(body: bytes) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """The schema and the record batches of a stream, valid in all their parts.

    :raises InvalidStreamError: for anything else, and for compressed buffers and dictionaries.
    """
    try:
        schema, rest = split_head(body) or _head(body)
        batches = [_batch(message, schema) for message in rest]
    except StopIteration:
        raise InvalidStreamError("expected a stream of Arrow's IPC format, got an end") from None
    except (pa.ArrowException, OSError) as error:
        raise InvalidStreamError(f"expected a stream of Arrow's IPC format: {error}") from error
    return schema, batches


def read_text_columns(body: bytes) -> pa.Table:
    """The columns of a stream, each of text or bytes.

    :raises InvalidStreamError: if it is no stream. :raises ValueError: naming a column of another type.
    """
    schema, batches = read_stream(body)
    for field in schema:
        if field.type not in _TYPES:
            raise ValueError(f"column {field.name!r}: expected string, large_string or binary, got {field.type}")
    return pa.Table.from_batches(batches, schema)


def _head(body: bytes) -> tuple[pa.Schema, pa.MessageReader]:
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    head = messages.read_next_message()
    if head.type != "schema":  # Arrow verifies a message by its type, and reads one of an unknown type unverified.
        raise InvalidStreamError(f"expected a schema first, got {head.type}")
    return pa.ipc.read_schema(head), messages


def _batch(message: pa.Message, schema: pa.Schema) -> pa.RecordBatch:
    if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
        raise InvalidStreamError("expected record batches without dictionaries and compression")
    batch = pa.ipc.read_record_batch(message, schema)
    batch.validate(full=True)
    return batch


def _is_compressed(metadata: bytes) -> bool:
    """Whether the FlatBuffer of a record batch has the field ``compression``, which pyarrow shows nowhere."""
    try:
        message = _U32.unpack_from(metadata)[0]
        header = message + _field(metadata, message, _HEADER)
        batch = header + _U32.unpack_from(metadata, header)[0]
        return _field(metadata, batch, _COMPRESSION) != 0
    except struct.error:
        return True  # It points outside itself.


def _field(data: bytes, table: int, index: int) -> int:
    """Where a field is in a table of a FlatBuffer; 0 if it is not."""
    fields = table - _I32.unpack_from(data, table)[0]
    place = _U16.size * (2 + index)
    return int(_U16.unpack_from(data, fields + place)[0]) if place < _U16.unpack_from(data, fields)[0] else 0
