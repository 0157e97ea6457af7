"""The OpenAPI description of the server of segments."""

from __future__ import annotations

from typing import Any

from quorin import __version__
from quorin.engine.bootstrap.peers import MEDIA_TYPE, NAME_HEADER
from quorin.engine.http.options import DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS
from quorin.engine.http.requests import CONSISTENT, MAX_CONSISTENT_MS

_ARROW = "application/vnd.apache.arrow.stream"
_JSON = "application/json"
_PAGE = {"text/html": {"schema": {"type": "string"}}}
_ARROW_BODY = {"schema": {"type": "string", "contentMediaType": _ARROW}}


def description(*, has_token: bool) -> dict[str, Any]:
    """OpenAPI 3.1, for JSON. With ``has_token`` requests must carry it."""
    about: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Quorin", "version": __version__, "description": _ABOUT},
        "paths": {
            "/v1/read": {"post": _post("read", "The rows of entities in one schema.", "ReadRequest", "Rows")},
            "/v1/assemble": {
                "post": _post("assemble", "Rows of several schemas, joined to vectors.", "AssembleRequest", "Vectors")
            },
            "/v1/last": {"post": _post("last", "The last values of a field of entities.", "LastRequest", "LastValues")},
            "/v1/changes": {"post": _changes()},
            "/v1/schemas": {"get": _get("schemas", "What is served: schemas, fields, rows and freshness.", "Schemas")},
            "/v1/snapshot": {"get": _snapshot()},
            "/": {"get": _get("page", "A page that shows in a browser what is served.", content=_PAGE)},
            "/health": {"get": _get("health", "Whether the process is up.", "Health")},
            "/ready": {
                "get": _get("ready", "Whether this machine has a fresh segment of every schema.", "Ready", also=503)
            },
            "/openapi.json": {"get": _get("openapi", "This description.", "OpenAPI")},
        },
        "components": {"schemas": _SCHEMAS},
    }
    if has_token:
        about["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in about["paths"].items():
            for operation in methods.values() if path not in ("/", "/health", "/ready") else ():
                operation["security"] = [{"token": []}]
                operation["responses"]["401"] = _error("The token is missing or wrong.")
    return about


def _get(
    name: str, summary: str, schema: str = "", *, also: int | None = None, content: dict[str, Any] | None = None
) -> dict[str, Any]:
    answer = {"description": summary, "content": content or {_JSON: {"schema": _ref(schema)}}}
    answers = {"200": answer} | (_AWAY if also is None else {str(also): answer})
    return {"operationId": name, "summary": summary, "responses": answers}


def _post(name: str, summary: str, request: str, reply: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": _ASKED,
        "requestBody": {"required": True, "content": {_JSON: {"schema": _ref(request)}, _ARROW: _ARROW_BODY}},
        "responses": {
            "200": {"description": summary, "content": {_JSON: {"schema": _ref(reply)}, _ARROW: _ARROW_BODY}},
            "400": _error("The body is no JSON, or no stream of Arrow."),
            "404": _error("There is no such schema."),
            "412": _error(
                "This machine does not show what Quorin-At-Least asks for: not in time, or not at all.", "TooOld"
            ),
            "413": _error("The request has too many bytes or rows, or its reply would have too many values."),
            "421": _error("Another node asks for rows that this one does not hold."),
            "415": _error("The content type is neither JSON nor Arrow."),
            "422": _error("A value of the request is wrong; the text names it, and what was expected."),
            **_AWAY,
        },
    }


def _changes() -> dict[str, Any]:
    summary = "The rows and deletions of a schema since a position of the log."
    operation = _post("changes", summary, "ChangesRequest", "Changes")
    del operation["requestBody"]["content"][_ARROW]
    forgotten = "The segment has forgotten deletions since then, and knows all changes since `complete_from`."
    operation["responses"]["410"] = _error(forgotten, "Forgotten")
    return operation


def _snapshot() -> dict[str, Any]:
    summary = "The rows of a schema as a snapshot, for a machine that has none."
    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
    named = {"description": "Position, log, schema and size of the snapshot.", "schema": {"type": "string"}}
    sent = {"schema": {"type": "string", "contentMediaType": MEDIA_TYPE}}
    return {
        "operationId": "snapshot",
        "summary": summary,
        "parameters": [
            {"name": "schema", "in": "query", "required": True, "schema": _NAME},
            {"name": "format", "in": "query", "schema": _INTEGER, "description": "The format of segments to be sent."},
        ],
        "responses": {
            "200": {"description": summary, "content": {MEDIA_TYPE: sent}, "headers": {NAME_HEADER: named}},
            "403": _error("This server sends no snapshots."),
            "404": _error("There is no segment of such a schema."),
            "406": _error("This server has segments of another format than was asked for."),
            "422": _error("The query is wrong."),
            "429": {**_error("As many transfers as may be are going on."), "headers": retry},
            **_AWAY,
        },
    }


def _error(text: str, schema: str = "Error") -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": _ref(schema)}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def _array(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _or_null(kind: str) -> dict[str, Any]:
    return {"type": [kind, "null"]}


_ABOUT = (
    "Features from shared memory. In JSON an integer has all its digits, bytes are base64, and null stands for a null "
    f"and for NaN and infinities; {_ARROW} has the stored types. A request in Arrow is a stream whose columns are the "
    "entity ids; the metadata of its schema has the rest of the request as JSON under `request`. gzip and zstd if "
    "Accept-Encoding names them."
)
_AWAY = {
    "503": {
        "description": "The segment, the control plane or another node's rows cannot be read, or there are too many "
        "requests."
    }
}
_TEXT, _INTEGER, _BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_NAME = {"type": "string", "minLength": 1}
_IDS = _array({"type": "string", "minLength": 1})
_FIELDS = {
    "type": ["array", "null"],
    "items": _NAME,
    "minItems": 1,
    "uniqueItems": True,
    "description": "Default: all.",
}
_MOMENT = {"type": ["integer", "string"], "pattern": r"^q1(\.[0-9a-f]{16}-[1-9][0-9]{0,18})*$"}
_POSITIONS = {"type": "boolean", "description": "Whether to return the log positions of the rows. Default: false."}
_ASKED: list[dict[str, Any]] = [
    {
        "name": "Quorin-At-Least",
        "in": "header",
        "schema": {"type": "string", "pattern": r"^q1(\.[0-7][0-9a-f]{15}-([1-9][0-9]{0,17}|[1-8][0-9]{18})){0,256}$"},
        "description": "The token of a write, from its header Quorin-Token: rows are at least as new.",
        "example": "q1",
    },
    {
        "name": "Quorin-Timeout-Ms",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_TIMEOUT_MS, "default": DEFAULT_TIMEOUT_MS},
        "description": "How long to wait for them.",
    },
]
_MAX_INT64 = 2**63 - 1
_SECONDS = {"type": "number", "minimum": 1e-9, "maximum": 9e9}
_MAX_AGE = {
    "anyOf": [_SECONDS, {"type": "object", "additionalProperties": _SECONDS, "minProperties": 1}, {"type": "null"}],
    "description": "Values in rows whose event time is longer ago, in seconds, read as null: one limit for all fields, "
    "or one by field. `fresh` in the reply says which rows have none of those.",
}
_SCHEMAS: dict[str, Any] = {
    "ReadRequest": _object(
        {"schema": _NAME, "entity_ids": _IDS, "fields": _FIELDS, "positions": _POSITIONS, "max_age": _MAX_AGE},
        "fields",
        "positions",
        "max_age",
        examples=[{"schema": "Driver", "entity_ids": ["1001", "1002"], "fields": ["conv_rate"]}],
    ),
    "Rows": _object(
        {
            "schema": _TEXT,
            "version": _INTEGER,
            "entity_ids": _IDS,
            "found": _array(_BOOLEAN),
            "event_time_ns": _array(_or_null("integer")),
            "log_position": _array(_or_null("integer"), description="With `positions`."),
            "fresh": _array(_BOOLEAN, description="With `max_age`."),
            "not_held": _array(_BOOLEAN, description="Of rows that no node answers for, with `--partial mask`."),
            "features": {"type": "object", "additionalProperties": _array({}), "description": "By name, a list each."},
        },
        "log_position",
        "fresh",
        "not_held",
    ),
    "LastRequest": _object(
        {
            "schema": _NAME,
            "entity_ids": _IDS,
            "field": {"type": "string", "minLength": 1, "description": "One with `history`."},
            "n": {
                **_or_null("integer"),
                "minimum": 1,
                "maximum": _MAX_INT64,
                "description": "Default: all that are kept.",
            },
        },
        "n",
        examples=[{"schema": "Card", "entity_ids": ["1001"], "field": "amount", "n": 10}],
    ),
    "LastValues": _object(
        {
            "schema": _TEXT,
            "version": _INTEGER,
            "field": _TEXT,
            "entity_ids": _IDS,
            "found": _array(_BOOLEAN),
            "values": _array({"type": ["array", "null"]}, description="Newest first; null where not found."),
            "event_time_ns": _array({"type": ["array", "null"], "items": _INTEGER}, description="As `values`."),
        }
    ),
    "ChangesRequest": _object(
        {
            "schema": _NAME,
            "position": {
                **_MOMENT,
                "minimum": 0,
                "maximum": _MAX_INT64,
                "description": "`through` of the last reply; 0 for all rows.",
            },
            "prefix": {**_or_null("string"), "description": "Of the entity ids."},
            "limit": {**_or_null("integer"), "minimum": 1, "maximum": _MAX_INT64, "description": "The most rows."},
            "fields": _FIELDS,
        },
        "prefix",
        "limit",
        "fields",
        examples=[{"schema": "Driver", "position": 0, "fields": ["conv_rate"]}],
    ),
    "Changes": _object(
        {
            "schema": _TEXT,
            "version": _INTEGER,
            "through": {
                "type": ["integer", "string", "null"],
                "description": "The position to ask for next, of several partitions a token; null if `limit` cut off.",
            },
            "entity_ids": _IDS,
            "event_time_ns": _array(_INTEGER),
            "position": _array(_INTEGER),
            "deleted": _array(_BOOLEAN),
            "features": {"type": "object", "additionalProperties": _array({}), "description": "Null in deletions."},
        }
    ),
    "AssembleRequest": _object(
        {
            "entities": {
                "type": "object",
                "propertyNames": {"minLength": 1},
                "additionalProperties": _IDS,
                "minProperties": 1,
            },
            "schemas": _array(
                _object(
                    {
                        "schema": _NAME,
                        "entity": {"type": ["string", "null"], "minLength": 1},
                        "fields": _FIELDS,
                        "max_age": _MAX_AGE,
                    },
                    "entity",
                    "fields",
                    "max_age",
                ),
                minItems=1,
            ),
            "positions": _POSITIONS,
            CONSISTENT: {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "maximum": MAX_CONSISTENT_MS,
                "description": "Milliseconds within which all rows are read as they are at one position of the log, "
                "which is then in the reply; 503 if that was not possible.",
            },
        },
        "positions",
        CONSISTENT,
        description="Columns of entity ids, of one length, and schemas. `entity` names the column of a schema; it may "
        "be left out if there is one column, or if the schema itself names its entity.",
        examples=[{"entities": {"driver": ["1001"]}, "schemas": [{"schema": "Driver", "fields": ["conv_rate"]}]}],
    ),
    "Vectors": _object(
        {
            "schemas": _array(_object({"schema": _TEXT, "version": _INTEGER})),
            "columns": _array(_object({"schema": _TEXT, "field": _TEXT, "first": _INTEGER, "count": _INTEGER})),
            "found": _array(_array(_BOOLEAN), description="For each row, whether each schema has it."),
            "log_position": _array(_array(_or_null("integer")), description="With `positions`; as `found`."),
            "fresh": _array(_array(_BOOLEAN), description="The same with no value over its limit, with `max_age`."),
            "not_held": _array(_array(_BOOLEAN), description="The same of rows that no node answers for."),
            "position": {
                **_MOMENT,
                "description": "With `consistent_timeout_ms`; of several partitions a token.",
            },
            "vectors": _array(_array(_or_null("number")), description="float32; null where there is no row."),
        },
        "log_position",
        "fresh",
        "not_held",
        "position",
    ),
    "Schemas": _object({"schemas": _array(_ref("Schema"))}),
    "Schema": _object(
        {
            "schema": _TEXT,
            "version": _INTEGER,
            "entity": _or_null("string"),
            "fields": _array(
                _object(
                    {"name": _TEXT, "dtype": _TEXT, "shape": _array(_or_null("integer")), "default": _or_null("number")}
                )
            ),
            "rows": _INTEGER,
            "capacity": {"type": "integer", "description": "Rows before the segment grows."},
            "bytes": _INTEGER,
            "position": {"type": "integer", "description": "The log position up to which everything is applied."},
            "lag_seconds": {
                "type": ["number", "null"],
                "description": "How long ago the log had nothing that the rows lack; null if that was never known.",
            },
            "newest_event_time_ns": _or_null("integer"),
            "problem": {
                "type": ["string", "null"],
                "description": "Why the schema cannot be read; the rest is then absent.",
            },
        },
        "version",
        "entity",
        "fields",
        "rows",
        "capacity",
        "bytes",
        "position",
        "lag_seconds",
        "newest_event_time_ns",
    ),
    "Health": _object({"status": {"const": "ok"}}),
    "Ready": _object(
        {
            "ready": _BOOLEAN,
            "schemas": _array(
                _object({"schema": _TEXT, "lag_seconds": _or_null("number"), "ready": _BOOLEAN, "problem": _TEXT})
            ),
        }
    ),
    "OpenAPI": {"type": "object"},
    "Error": _object({"detail": _TEXT}),
    "TooOld": _object(
        {
            "detail": _TEXT,
            "error": _TEXT,
            "schema": _TEXT,
            "position": _INTEGER,
            "applied": _INTEGER,
            "timeout_ms": {"type": "number"},
        },
        "schema",
        "position",
        "applied",
        "timeout_ms",
    ),
    "Forgotten": _object({"detail": _TEXT, "error": _TEXT, "complete_from": _INTEGER}),
}
