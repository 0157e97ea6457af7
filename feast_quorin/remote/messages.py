"""Messages between a remote store and ``quorin serve``: one record batch as a stream of Arrow's IPC format.

What is not a column is JSON in the metadata of the schema, under the key ``quorin``. The server reads messages with
:mod:`feast_quorin.server.received`.
"""

from __future__ import annotations

import json
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
    errors.TokenError,
)
ERRORS: dict[str, type[errors.QuorinError]] = {kind.__name__: kind for kind in _REFUSALS}
"""What the server refuses and the client raises again."""


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
