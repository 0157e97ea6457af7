"""Streams of Arrow's IPC format whose heads, the messages with the schemas, are written and read once."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

_MARK = b"\xff\xff\xff\xff"
_END = _MARK + bytes(4)
_MAX_HEADS, _MAX_HEAD_BYTES = 256, 4096


class StreamHead:
    """The head of streams with one schema, without dictionaries."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._bytes = schema.serialize().to_pybytes()

    def stream(self, columns: Sequence[pa.Array]) -> bytes:
        """A stream of one record batch, as ``pa.ipc.new_stream`` writes it."""
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        return b"".join((self._bytes, batch.serialize(), _END))


def split_head(body: bytes) -> tuple[pa.Schema, pa.MessageReader] | None:
    """The schema that a stream begins with, and the messages behind; None if it must be read as a whole, as one of an
    older format or with a long head, and what is no stream.
    """
    size = len(_MARK) + 4 + int.from_bytes(body[4:8], "little")
    if body[:4] != _MARK or size > min(_MAX_HEAD_BYTES, len(body)):
        return None
    schema = _schema_of(body[:size])
    return None if schema is None else (schema, pa.ipc.MessageReader.open_stream(pa.py_buffer(body).slice(size)))


@lru_cache(_MAX_HEADS)
def _schema_of(head: bytes) -> pa.Schema | None:
    try:
        message = pa.ipc.read_message(head)
        # Arrow verifies a message by its type, and reads one of an unknown type unverified.
        return pa.ipc.read_schema(message) if message.type == "schema" and not message.body else None
    except (pa.ArrowException, OSError):
        return None
