"""Messages between a remote store and ``quorin serve``: one record batch as a stream of Arrow's IPC format.

What is not a column is JSON in the metadata of the schema, under the key ``quorin``. The server reads messages with
:mod:`feast_quorin.server.request_bodies`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_quorin.read.ages import limits_of
from feast_quorin.read.options import positive_ms
from feast_quorin.read.pins import pins_of
from quorin import errors

if TYPE_CHECKING:
    from feast_quorin.read.ages import Limits
    from feast_quorin.read.options import ReadOptions
    from feast_quorin.read.pins import Pins

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
ONLINE_FEATURES, READ, WRITE = "/get-online-features", "/quorin/read", "/quorin/write"
METADATA = b"quorin"

_REFUSALS = (
    errors.EntityIdError,
    errors.GenerationNotFoundError,
    errors.InconsistentReadError,
    errors.InvalidMaxAgeError,
    errors.InvalidPinError,
    errors.EntityIdTooLongError,
    errors.InvalidRowError,
    errors.LogFullError,
    errors.PinLimitError,
    errors.SchemaError,
    errors.SegmentNotFoundError,
    errors.TokenError,
)
ERRORS: dict[str, type[errors.QuorinError]] = {kind.__name__: kind for kind in _REFUSALS}
"""What the server refuses and the client raises again."""


MAX_AGE_HEADER, CONSISTENT_HEADER, PIN_HEADER = "quorin-max-age", "quorin-consistent", "quorin-pin"
_PIN = PIN_HEADER.encode()
_NAME = itemgetter(0)
_ASKING = frozenset((MAX_AGE_HEADER.encode(), CONSISTENT_HEADER.encode(), _PIN))


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


def row_headers(options: ReadOptions) -> dict[str, str]:
    """Which rows a read asks for, and what it waits for, as headers of any request."""
    headers = {}
    if options.at_least is not None:
        headers = {"Quorin-At-Least": options.at_least.text, "Quorin-Timeout-Ms": str(math.ceil(options.timeout_ms))}
    if options.pins is not None:
        headers[PIN_HEADER] = json.dumps(dict(options.pins.generations))
    return headers


def asking_headers(options: ReadOptions) -> dict[str, str]:
    """What a read asks for, as headers of a request for features."""
    headers = row_headers(options)
    if options.limits:
        headers[MAX_AGE_HEADER] = json.dumps({name: limit.total_seconds() for name, limit in options.limits})
    if options.consistent_ms is not None:
        headers[CONSISTENT_HEADER] = f"{options.consistent_ms:.15g}"
    return headers


def is_asking(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether headers ask for anything beyond the features."""
    return not _ASKING.isdisjoint(map(_NAME, headers))


def pins_alone(headers: Iterable[tuple[bytes, bytes]]) -> Pins | None:
    """The pins that headers ask for, if they ask for nothing else; None if they do, or if the pins are wrong."""
    asking = [name for name, _ in headers if name in _ASKING]
    try:
        return asked_for(headers)["pins"] if asking == [_PIN] else None
    except BadMessageError:
        return None


def asked_for(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    """What headers ask for, as fields of :class:`feast_quorin.read.options.ReadOptions`.

    :raises BadMessageError: naming the header, its value, and what was expected.
    """
    changes: dict[str, Any] = {}
    for name, value in headers:
        if name in _ASKING:
            shown = f"{name.decode()}: {value.decode('latin-1')}"
            try:
                found = json.loads(value)
                if name == MAX_AGE_HEADER.encode():
                    changes["limits"] = _limits(found)
                elif name == _PIN:
                    changes["pins"] = pins_of(found)
                else:
                    changes["consistent_ms"] = positive_ms(shown, found)
            except (ValueError, RecursionError) as error:
                raise BadMessageError(f"{shown}: {error}") from None
    return changes


def _limits(max_age: Any) -> Limits:
    """``""`` names all views, where a client's limits are for all of them and for some."""
    if isinstance(max_age, dict) and "" in max_age:
        rest = {name: limit for name, limit in max_age.items() if name}
        return limits_of(max_age[""]) + (limits_of(rest) if rest else ())
    return limits_of(max_age)
