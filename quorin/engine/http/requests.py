"""Requests to segments, from JSON or Arrow, checked as far as that needs no segment.

A request in Arrow is a stream whose columns are the entities; the JSON of the rest is in the metadata of the stream's
schema, under ``request``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from quorin.assembly import MaxAge, duration_ns
from quorin.engine.http.arrow_stream import InvalidStreamError, read_text_columns
from quorin.engine.log.token import Token
from quorin.errors import InvalidMaxAgeError, TokenError

ARROW = b"application/vnd.apache.arrow.stream"
JSON = b"application/json"
_METADATA_KEY = b"request"
_SHOWN_CHARACTERS = 100
CONSISTENT = "consistent_timeout_ms"
MAX_CONSISTENT_MS = 60_000


class InvalidRequestError(Exception):
    """A request that is refused with a status of HTTP."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Read(NamedTuple):
    """``POST /v1/read``: the rows of entities in one schema. ``fields`` is None for all. ``max_age`` is a number of
    seconds, or one by field.
    """

    schema: str
    entity_ids: Any
    fields: list[str] | None
    positions: bool
    max_age: MaxAge | None


class RequestPart(NamedTuple):
    """A schema of ``POST /v1/assemble``, and the column of entities that its rows are found by; None for the only one,
    or the one that the schema names.
    """

    schema: str
    entity: str | None
    fields: list[str] | None
    max_age: MaxAge | None


class Assemble(NamedTuple):
    """``POST /v1/assemble``: the rows of several schemas, joined to one vector for each row of ``entities``; with
    ``consistent_timeout_ms`` as they are at one position of the log.
    """

    entities: dict[str, Any]
    parts: list[RequestPart]
    positions: bool
    consistent_timeout_ms: float | None


class Last(NamedTuple):
    """``POST /v1/last``: the last values of a field that keeps them; ``n`` is None for all."""

    schema: str
    entity_ids: Any
    field: str
    n: int | None


class Changes(NamedTuple):
    """``POST /v1/changes``: the rows and deletions of one schema since a position of the log or a token, of ids with a
    prefix, at most ``limit``. ``fields`` is None for all.
    """

    schema: str
    position: int | Token
    prefix: str | None
    limit: int | None
    fields: list[str] | None


def parse_read(body: bytes, content_type: bytes, max_rows: int) -> Read:
    """:raises InvalidRequestError: naming the value, and what was expected."""
    if content_type.startswith(ARROW):
        request, entities = _arrow(body)
        if len(entities) != 1:
            raise _wrong("the stream", "exactly one column, the entity ids", list(entities))
        _check_keys(request, "the request", needed=("schema",), optional=("fields", "positions", "max_age"))
        [ids] = entities.values()
    else:
        request = _json(body, content_type)
        optional = "fields", "positions", "max_age"
        _check_keys(request, "the request", needed=("schema", "entity_ids"), optional=optional)
        ids = _ids("entity_ids", request["entity_ids"])
    _check_rows(len(ids), max_rows)
    schema, max_age = _text("schema", request["schema"]), _max_age("max_age", request)
    return Read(schema, ids, _fields(request), _positions(request), max_age)


def parse_assemble(body: bytes, content_type: bytes, max_rows: int) -> Assemble:
    """:raises InvalidRequestError: naming the value, and what was expected."""
    if content_type.startswith(ARROW):
        request, entities = _arrow(body)
        _check_keys(request, "the request", needed=("schemas",), optional=("positions", CONSISTENT))
    else:
        request = _json(body, content_type)
        _check_keys(request, "the request", needed=("schemas", "entities"), optional=("positions", CONSISTENT))
        if type(request["entities"]) is not dict:
            raise _wrong("entities", "an object with a list of entity ids for each name", request["entities"])
        entities = {_text("entities", name): _ids(f"entities.{name}", ids) for name, ids in request["entities"].items()}
    lengths = {name: len(ids) for name, ids in entities.items()}
    if len(set(lengths.values())) != 1:
        raise _wrong("entities", "columns of one length", lengths)
    _check_rows(max(lengths.values()), max_rows)
    parts = request["schemas"]
    if type(parts) is not list or not parts:
        raise _wrong("schemas", "a list of at least one schema", parts)
    timeout_ms = request.get(CONSISTENT)
    if timeout_ms is not None and (type(timeout_ms) not in (int, float) or not 0 < timeout_ms <= MAX_CONSISTENT_MS):
        raise _wrong(CONSISTENT, f"milliseconds above 0 and up to {MAX_CONSISTENT_MS}", timeout_ms)
    checked = [_part(f"schemas[{index}]", part) for index, part in enumerate(parts)]
    return Assemble(entities, checked, _positions(request), timeout_ms)


def parse_last(body: bytes, content_type: bytes, max_rows: int) -> Last:
    """:raises InvalidRequestError: naming the value, and what was expected."""
    if content_type.startswith(ARROW):
        request, entities = _arrow(body)
        if len(entities) != 1:
            raise _wrong("the stream", "exactly one column, the entity ids", list(entities))
        _check_keys(request, "the request", needed=("schema", "field"), optional=("n",))
        [ids] = entities.values()
    else:
        request = _json(body, content_type)
        _check_keys(request, "the request", needed=("schema", "entity_ids", "field"), optional=("n",))
        ids = _ids("entity_ids", request["entity_ids"])
    _check_rows(len(ids), max_rows)
    schema, field = _text("schema", request["schema"]), _text("field", request["field"])
    return Last(schema, ids, field, _number("n", request, least=1))


def parse_changes(body: bytes, content_type: bytes) -> Changes:
    """:raises InvalidRequestError: naming the value, and what was expected."""
    request = _json(body, content_type)
    _check_keys(request, "the request", needed=("schema", "position"), optional=("prefix", "limit", "fields"))
    prefix = request.get("prefix")
    if prefix is not None and type(prefix) is not str:
        raise _wrong("prefix", "a text", prefix)
    limit, fields = _number("limit", request, least=1), _fields(request)
    return Changes(_text("schema", request["schema"]), _position(request), prefix, limit, fields)


def check_values(count: int, max_values: int) -> None:
    """:raises InvalidRequestError: if a reply would have more than ``max_values``."""
    if count > max_values:
        raise InvalidRequestError(413, f"expected at most {max_values} values in a reply (rows × fields), got {count}")


def _part(where: str, part: Any) -> RequestPart:
    if type(part) is not dict:
        raise _wrong(where, "an object", part)
    _check_keys(part, where, needed=("schema",), optional=("entity", "fields", "max_age"))
    entity = part.get("entity")
    if entity is not None:
        _text(f"{where}.entity", entity)
    return RequestPart(
        _text(f"{where}.schema", part["schema"]), entity, _fields(part), _max_age(f"{where}.max_age", part)
    )


def _json(body: bytes, content_type: bytes) -> dict[str, Any]:
    if content_type and content_type.partition(b";")[0].strip().lower() != JSON:
        shown = content_type.decode("latin-1")
        raise InvalidRequestError(415, f"expected Content-Type {JSON.decode()} or {ARROW.decode()}, got {shown!r}")
    return _object(body)


def _object(text: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(400, f"expected JSON: {error}") from error
    if type(request) is not dict:
        raise _wrong("the request", "an object", request)
    return request


def _arrow(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        table = read_text_columns(body)
    except InvalidStreamError as error:
        raise InvalidRequestError(400, str(error)) from error
    except ValueError as error:
        raise InvalidRequestError(422, str(error)) from error
    text = (table.schema.metadata or {}).get(_METADATA_KEY)
    if text is None:
        raise InvalidRequestError(422, "the metadata of the stream's schema: expected the key 'request', with JSON")
    if len(set(table.column_names)) < table.num_columns:
        raise _wrong("the stream", "columns of different names", table.column_names)
    return _object(text), {name: _arrow_ids(name, table[name]) for name in table.column_names}


def _arrow_ids(name: str, column: pa.ChunkedArray) -> pa.Array:
    ids = column.combine_chunks()
    if ids.null_count:
        raise InvalidRequestError(422, f"column {name!r}: expected no nulls, got {ids.null_count}")
    try:
        return ids if pa.types.is_string(ids.type) else ids.cast(pa.large_string())
    except pa.ArrowException as error:
        raise InvalidRequestError(422, f"column {name!r}: expected text: {error}") from error


def _ids(where: str, ids: Any) -> list[str]:
    if type(ids) is not list:
        raise _wrong(where, "a list of entity ids", ids)
    if not {*map(type, ids)} <= {str} or "" in ids:
        index = next(index for index, value in enumerate(ids) if type(value) is not str or not value)
        raise _wrong(f"{where}[{index}]", "an entity id, a text that is not empty", ids[index])
    return ids


def _fields(request: dict[str, Any]) -> list[str] | None:
    fields = request.get("fields")
    if fields is None:
        return None
    if type(fields) is not list or not fields or not {*map(type, fields)} <= {str} or len({*fields}) < len(fields):
        raise _wrong("fields", "a list of different names of fields", fields)
    return fields


def _positions(request: dict[str, Any]) -> bool:
    asked = request.get("positions", False)
    if type(asked) is not bool:
        raise _wrong("positions", "true or false", asked)
    return asked


def _position(request: dict[str, Any]) -> int | Token:
    value = request["position"]
    if type(value) is str:
        try:
            return Token.parse(value)
        except TokenError as error:
            raise InvalidRequestError(422, f"position: {error}") from error
    position = _number("position", request, least=0)
    if position is None:
        raise _wrong("position", "a position of the log, 0 for all rows, or a token", value)
    return position


def _max_age(where: str, request: dict[str, Any]) -> MaxAge | None:
    max_age: MaxAge | None = request.get("max_age")
    if isinstance(max_age, dict) and not max_age:
        raise _wrong(where, "seconds, or seconds for at least one field", max_age)
    for name, limit in max_age.items() if isinstance(max_age, dict) else () if max_age is None else (("", max_age),):
        try:
            duration_ns(f"{where}.{name}" if name else where, limit)
        except InvalidMaxAgeError as error:
            raise InvalidRequestError(422, str(error)) from error
    return max_age


def _number(name: str, request: dict[str, Any], *, least: int) -> int | None:
    value = request.get(name)
    if type(value) is float and value.is_integer() and abs(value) < 1 << 53:
        value = int(value)  # To JSON 5.0 is an integer, too.
    if value is not None and (type(value) is not int or not least <= value < 1 << 63):
        raise _wrong(name, f"a whole number, {least} or more, below 2**63", value)
    return value


def _text(where: str, value: Any) -> str:
    if type(value) is not str or not value:
        raise _wrong(where, "a name", value)
    return value


def _check_rows(count: int, max_rows: int) -> None:
    if count > max_rows:
        raise InvalidRequestError(413, f"expected at most {max_rows} rows, got {count}")


def _check_keys(
    request: dict[str, Any], where: str, *, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    missing = [key for key in needed if key not in request]
    unknown = [key for key in request if key not in needed + optional]
    if missing or unknown:
        expected = ", ".join([*needed, *(f"{key} (optional)" for key in optional)])
        raise _wrong(where, f"the keys {expected}", list(request))


def _wrong(where: str, expected: str, value: Any) -> InvalidRequestError:
    return InvalidRequestError(422, f"{where}: expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
