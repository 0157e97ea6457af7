"""Streams of Arrow's IPC format from a client, read without taking more memory than they have bytes.

Compressed buffers, dictionaries, views and runs stand for more bytes than they have, so they are refused before they
are read.
"""

from __future__ import annotations

import struct

import pyarrow as pa

_TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_U16, _U32, _I32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")
_HEADER, _COMPRESSION = 2, 3
"""Fields of the FlatBuffers ``Message`` and ``RecordBatch``, by their place in Arrow's ``Message.fbs``."""


def read_text_columns(body: bytes) -> pa.Table:
    """The columns of a stream, each of text or bytes, checked whole.

    :raises ArrowException, OSError, StopIteration: if it is no stream.
    :raises ValueError: naming a column of another type; for compressed buffers.
    """
    messages = pa.ipc.MessageReader.open_stream(body)
    schema = pa.ipc.read_schema(messages.read_next_message())
    for field in schema:
        if field.type not in _TYPES:
            raise ValueError(f"column {field.name!r}: expected string, large_string or binary, got {field.type}")
    batches = []
    for message in messages:
        if message.type != "record batch" or _is_compressed(bytes(message.metadata)):
            raise ValueError("expected record batches without compressed buffers")
        batches.append(pa.ipc.read_record_batch(message, schema))
    table = pa.Table.from_batches(batches, schema)
    table.validate(full=True)
    return table


def _is_compressed(metadata: bytes) -> bool:
    """Whether the FlatBuffer of a record batch has the field ``compression``."""
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
