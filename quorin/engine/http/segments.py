"""The application that serves the segments of a connection."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from quorin import assembly
from quorin.engine.http import asgi, replies
from quorin.engine.http.asked import Asked, InvalidHeaderError, asked_by, may_wait, too_old
from quorin.engine.http.catalogue import Catalogue
from quorin.engine.http.compression import accepted_encoding, compressed
from quorin.engine.http.donor import Donor
from quorin.engine.http.joined import join
from quorin.engine.http.limits import Limits
from quorin.engine.http.looking_back import changes_of, last_of
from quorin.engine.http.openapi import description
from quorin.engine.http.page import page
from quorin.engine.http.reply import Reply, error_reply, forms
from quorin.engine.http.requests import (
    ARROW,
    CONSISTENT,
    JSON,
    InvalidRequestError,
    check_values,
    parse_assemble,
    parse_changes,
    parse_last,
    parse_read,
)
from quorin.errors import (
    ChangesForgottenError,
    EntityIdError,
    InconsistentReadError,
    InvalidMaxAgeError,
    InvalidRowError,
    NotYetAppliedError,
    QuorinError,
    TokenError,
)
from quorin.logging import get_logger
from quorin.shm import SegmentRegistry

if TYPE_CHECKING:
    from quorin.engine.http.reply import Direct, Headers
    from quorin.schema import Schema

_DIRECT_BYTES = 16 * 1024
_DIRECT_VALUES, _DIRECT_VALUES_COMPRESSED = 50_000, 5_000
"""Larger requests, and those of more values, are answered in a thread: other requests are answered meanwhile."""
_TOO_LARGE = 413
_CHANGES = "/v1/changes"
"""Always answered in a thread, as all rows are looked at."""
_MAY_WAIT = CONSISTENT.encode()
"""What a request has that may have to wait."""
_SWITCH_SECONDS = 0.001
"""How long a thread keeps the interpreter's lock from the thread that answers small requests."""

_log = get_logger(__name__)


class Question(NamedTuple):
    """Body and content type of a request, what its headers ask for, whether the reply is to be Arrow, and the most
    values in it.
    """

    body: bytes
    content_type: bytes
    asked: Asked
    as_arrow: bool
    max_values: int


Answer = Callable[[Question], bytes]
"""From a question to the body of the reply."""


@dataclass(frozen=True, slots=True)
class SegmentServer:
    """Makes the application that serves a connection's segments, in each worker: what :func:`quorin.http.run` takes.

    ``schemas`` are the names of those to serve, all if empty. ``connection`` must be a text, for the other processes.
    ``transfers`` is how many new nodes may copy this node's rows at once. ``pins`` are generations to stay with, by
    schema, as :meth:`quorin.shm.SegmentRegistry.open_current` takes them.
    """

    connection: str = field(repr=False)
    schemas: tuple[str, ...] = ()
    namespace: str = "quorin"
    shm_dir: str | os.PathLike[str] | None = None
    token: str | None = field(default=None, repr=False)
    max_lag_seconds: float | None = None
    limits: Limits = field(default_factory=Limits)
    transfers: int = 1
    pins: Mapping[str, int | str] = field(default_factory=dict)

    def __call__(self) -> SegmentApplication:
        """The application of this process.

        :raises ConnectionFailedError: if the control plane is away, and the node has never met the deployment.
        """
        sys.setswitchinterval(_SWITCH_SECONDS)
        assembly.prewarm()
        pa.array(np.empty(0))  # Arrow imports pandas, if there is one, at the first array from NumPy.
        registry = SegmentRegistry(self.connection, shm_dir=self.shm_dir, namespace=self.namespace)
        donor = Donor(registry, names=self.schemas, at_once=self.transfers, max_lag_seconds=self.max_lag_seconds)
        return SegmentApplication(Catalogue(registry, self.schemas, self.pins), donor, self)


class SegmentApplication:
    """ASGI, and what the protocol needs beyond it: ``direct``, ``limits`` and ``token``."""

    def __init__(self, catalogue: Catalogue, donor: Donor, options: SegmentServer) -> None:
        self._catalogue = catalogue
        self._donor = donor
        self._max_lag_seconds = options.max_lag_seconds
        self._openapi = orjson.dumps(description(has_token=options.token is not None))
        self.limits = options.limits
        self.token = None if options.token is None else options.token.encode()
        self._posts: dict[str, Answer] = {
            "/v1/read": self._read,
            "/v1/assemble": self._assemble,
            "/v1/last": self._last,
            _CHANGES: self._changes,
        }
        self._gets: dict[str, Callable[[], Reply]] = {
            "/": page,
            "/v1/schemas": self._schemas,
            "/health": partial(Reply, 200, JSON, b'{"status":"ok"}'),
            "/ready": self._ready,
            "/openapi.json": partial(Reply, 200, JSON, self._openapi),
        }
        self.paths = (*self._posts, *self._gets, donor.path)
        self.direct: dict[bytes, Direct] = {
            path.encode(): partial(self._direct, answer) for path, answer in self._posts.items() if path != _CHANGES
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await asgi.live(receive, send)
            return
        path, method, headers = scope["path"], scope["method"], scope["headers"]
        if path == self._donor.path and method == "GET":
            await self._donor(scope, receive, send)
            return
        if path in self._posts and method == "POST":
            body = await asgi.receive_body(receive)
            if body is None:
                return
            reply = await asyncio.to_thread(self._answer, self._posts[path], body, headers, self.limits.values)
        elif path in self._gets and method in ("GET", "HEAD"):
            reply = await asyncio.to_thread(_guarded, self._gets[path])
        elif path in self.paths:
            allowed = b"POST" if path in self._posts else b"GET, HEAD" if path in self._gets else b"GET"
            detail = f"{path}: expected {allowed.decode()}, got {method}"
            reply = error_reply(405, detail, (b"allow", allowed))
        else:
            paths = ", ".join(self.paths)
            reply = error_reply(404, f"there is no {path}; there are: {paths}")
        await asgi.send_reply(send, reply)

    def _direct(self, answer: Answer, body: bytes, headers: Headers) -> Reply | None:
        if len(body) > _DIRECT_BYTES or _MAY_WAIT in body or may_wait(headers):
            return None
        limit = _DIRECT_VALUES if accepted_encoding(headers) is None else _DIRECT_VALUES_COMPRESSED
        reply = self._answer(answer, body, headers, min(limit, self.limits.values))
        return None if reply.status == _TOO_LARGE else reply

    def _answer(self, answer: Answer, body: bytes, headers: Headers, max_values: int) -> Reply:
        content_type, accept = forms(headers)
        as_arrow = ARROW in accept

        def answered() -> Reply:
            question = Question(body, content_type, asked_by(headers), as_arrow, max_values)
            return Reply(200, ARROW if as_arrow else JSON, answer(question))

        return compressed(_guarded(answered), accepted_encoding(headers))

    def _read(self, question: Question) -> bytes:
        request = parse_read(question.body, question.content_type, self.limits.rows)
        segment = self._catalogue.segment(request.schema)
        check_values(len(request.entity_ids) * _width(segment.schema, request.fields), question.max_values)
        question.asked.wait(segment)
        read = assembly.column_reader(segment, request.fields, positions=request.positions, max_age=request.max_age)
        columns = read(request.entity_ids)
        if question.as_arrow:
            return replies.rows_arrow(segment.schema, columns)
        return replies.rows_json(segment.schema, request.entity_ids, columns, positions=request.positions)

    def _assemble(self, question: Question) -> bytes:
        request = parse_assemble(question.body, question.content_type, self.limits.rows)
        vectors = join(self._catalogue, request, question.max_values, question.asked)
        return replies.vectors_arrow(vectors) if question.as_arrow else replies.vectors_json(vectors)

    def _last(self, question: Question) -> bytes:
        request = parse_last(question.body, question.content_type, self.limits.rows)
        found = last_of(self._catalogue, request, question.max_values, question.asked)
        return replies.last_arrow(found) if question.as_arrow else replies.last_json(found)

    def _changes(self, question: Question) -> bytes:
        request = parse_changes(question.body, question.content_type)
        found = changes_of(self._catalogue, request, self.limits, question.max_values, question.asked)
        return replies.changes_arrow(found) if question.as_arrow else replies.changes_json(found)

    def _schemas(self) -> Reply:
        return Reply(200, JSON, orjson.dumps({"schemas": self._catalogue.describe()}))

    def _ready(self) -> Reply:
        found = self._catalogue.readiness(self._max_lag_seconds)
        is_ready = bool(found) and not any(one.problem for one in found)
        text = orjson.dumps({"ready": is_ready, "schemas": [one.as_dict() for one in found]})
        return Reply(200 if is_ready else 503, JSON, text)


def _guarded(answer: Callable[[], Reply]) -> Reply:
    """The answer, or the reason why there is none."""
    try:
        return answer()
    except InvalidRequestError as error:
        return error_reply(error.status, str(error))
    except (InvalidHeaderError, InvalidRowError, EntityIdError, InvalidMaxAgeError) as error:
        return error_reply(422, str(error))
    except (NotYetAppliedError, TokenError) as error:
        return too_old(error)
    except ChangesForgottenError as error:
        about = {"detail": str(error), "error": type(error).__name__, "complete_from": error.complete_from}
        return Reply(410, JSON, orjson.dumps(about))
    except InconsistentReadError as error:
        return error_reply(503, str(error))
    except QuorinError as error:
        _log.exception("request_failed")
        return error_reply(503, f"{type(error).__name__}: the server's log has the reason")


def _width(schema: Schema, names: list[str] | None) -> int:
    """The values of a row; one of a variable size counts as one."""
    return sum(max(1, field.element_count) for field in schema.fields if names is None or field.name in names)
