"""The ASGI application: Feast's own, behind the paths that are answered here."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from feast import FeatureStore
from feast import feature_server as feast_server

from feast_quorin import feast_private
from feast_quorin.server.authentication import gate
from feast_quorin.server.headers import refuses_as_here, with_headers
from feast_quorin.server.online_features import NO_REMOTE_STORES, PATH, OnlineFeatures
from feast_quorin.server.ready import online_store, ready
from feast_quorin.server.remote_rows import RemoteRows
from feast_quorin.server.view_descriptions import described
from quorin.http import (
    Catalogue,
    Donor,
    Limits,
    Reply,
    SegmentRows,
    error_reply,
    is_forwarded,
    of_forwarded,
    page,
    receive_body,
    register_address,
    send_reply,
)
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast_quorin.server.authentication import Choice
    from quorin.http import Direct, RegisteredAddress

_log = get_logger(__name__)
_SWITCH_SECONDS = 0.001
"""How long a thread keeps the interpreter's lock from the thread that answers small requests."""


@dataclass(frozen=True, slots=True)
class RepositoryServer:
    """Makes the application of a Feast repository, in each worker."""

    repository: Path
    feature_store_yaml: Path | None = None
    registry_ttl_seconds: int = 60
    metrics: bool = False
    token: str | None = field(default=None, repr=False)
    max_lag_seconds: float | None = None
    limits: Limits = field(default_factory=Limits)
    auth_cache_seconds: int = 30
    transfers: int = 1

    def advertise(self, url: str) -> RegisteredAddress:
        """Let other machines ask this one at a URL, while the result is kept.

        :raises ValueError: for a URL of another form. :raises SharedMemoryError: if the node is another user's.
        """
        store = self._store()
        return register_address(online_store(store).registry(store.config).node, url)

    def check(self, workers: int) -> None:
        """Refuse now what every worker would.

        :raises ValueError: if there is no repository, if its online store is not Quorin's, for several workers with
            Feast's metrics, which have one port, and for a token beside Feast's authentication, which reads the same
            header.
        """
        try:
            store = self._store()
            online_store(store)
        except Exception as error:
            raise ValueError(f"{self.repository}: {error}") from error
        if workers > 1 and (self.metrics or feast_private.has_metrics(store)):
            raise ValueError(f"expected one worker with Feast's metrics, which listen on one port, got {workers}")
        kind = store.config.auth_config.type
        if self.token is not None and kind != "no_auth":
            raise ValueError(f"expected a token or `auth` in feature_store.yaml, got both: `auth: {{type: {kind}}}`")

    def __call__(self) -> Application:
        """The application of this process."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        store = self._store()
        feast_private.start_server_parts(store, metrics=self.metrics)
        app = feast_server.get_app(store, self.registry_ttl_seconds)
        refuses_as_here(app)
        return Application(store, app, self)

    def _store(self) -> FeatureStore:
        return FeatureStore(repo_path=str(self.repository), fs_yaml_file=self.feature_store_yaml)


class Application:
    """ASGI, and what :mod:`quorin.http` needs beyond it: ``direct``, ``limits`` and ``token``."""

    def __init__(self, store: Any, feast_app: Any, options: RepositoryServer) -> None:
        self._store = store
        self._feast_app = _that_answers(feast_app)
        self._gate = gate(store, options.auth_cache_seconds)
        self._online_features = OnlineFeatures(store, options.limits, self._gate)
        registry = online_store(store).registry(store.config)
        self._catalogue = Catalogue(registry)
        self._donor = Donor(registry, at_once=options.transfers, max_lag_seconds=options.max_lag_seconds)
        self._remote_rows = RemoteRows(store, options.limits.rows)
        # To other machines, which ask for rows that they do not hold, this server is one of segments.
        store.config.online_store.use_token(options.token)
        self._held = SegmentRows(self._catalogue, options.limits)
        self._max_lag_seconds = options.max_lag_seconds
        self.limits = options.limits
        self.token = None if options.token is None else options.token.encode()
        self.is_short = feast_private.allows_short_way(store)
        # What Feast's server does not have, its permissions do not cover.
        self._is_open = self.is_short and self._gate is None
        self.paths = {"/", "/ready", self._donor.path, *_fixed_paths(feast_app)}
        self.direct: dict[bytes, Direct] = {PATH: self._online_features.direct} if self.is_short else {}
        if self._is_open:
            self.direct |= {path: of_forwarded(direct) for path, direct in self._held.direct.items()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or have Feast's application answer it; see :mod:`feast_quorin.server.headers`."""
        if scope["type"] == "http" and scope["method"] == "POST":
            await with_headers(self._route, scope, receive, send)
        else:
            await self._route(scope, receive, send)

    async def _route(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path")
        if path == "/ready" and scope["method"] == "GET":
            found = await asyncio.to_thread(ready, self._store, self._max_lag_seconds)
            reply = Reply(200 if found["ready"] else 503, b"application/json", orjson.dumps(found))
            await send_reply(send, reply)
        elif path == "/" and scope["method"] == "GET" and self._is_open:
            await send_reply(send, page())
        elif path == "/v1/schemas" and scope["method"] == "GET" and self._is_open:
            found = await asyncio.to_thread(described, self._store, self._catalogue)
            await send_reply(send, Reply(200, b"application/json", orjson.dumps(found)))
        elif path == self._donor.path and scope["method"] == "GET" and self._is_open:
            await self._donor(scope, receive, send)
        elif path == PATH.decode() and scope["method"] == "POST" and self.is_short:
            await self._answer(scope, receive, send)
        elif path in self._held.paths and self._is_open and is_forwarded(scope["headers"]):
            await self._answer_rows(partial(self._held.reply, path, headers=scope["headers"]), receive, send)
        elif path in self._remote_rows.actions and scope["method"] == "POST":
            await self._answer_rows(self._remote_rows.actions[path], receive, send)
        else:
            await self._feast_app(scope, receive, send)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        body = await receive_body(receive)
        if body is None:
            return
        may_read = await self._reader(scope)
        answer = self._online_features.reply
        reply = None if may_read is None else await asyncio.to_thread(answer, body, scope["headers"], may_read)
        if reply is None:
            await self._feast_app(scope, _replayed(body, receive), send)
        else:
            await send_reply(send, reply)

    async def _reader(self, scope: Any) -> Callable[[Choice], bool] | None:
        """Whether a choice of features may be read, for whoever is asking; None if Feast must say who that is."""
        if self._gate is None:
            return lambda _: True
        # A query may name another project, whose permissions then count.
        known = None if scope["query_string"] else await self._gate.bearer(scope["headers"])
        return None if known is None else partial(self._gate.may_read, known)

    async def _answer_rows(self, action: Callable[[bytes], Reply], receive: Any, send: Any) -> None:
        if not self._is_open:
            await send_reply(send, error_reply(501, NO_REMOTE_STORES))
            return
        body = await receive_body(receive)
        if body is not None:
            await send_reply(send, await asyncio.to_thread(action, body))


def _that_answers(app: Any) -> Any:
    """Feast's application, without the errors that it raises once more when it has answered them: the server would
    close the connection of a client that has its answer, and log what the client sent.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        is_answered = False

        async def watched(message: Any) -> None:
            nonlocal is_answered
            await send(message)
            is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await app(scope, receive, watched)
        except Exception as error:
            if not is_answered:
                raise
            _log.debug("a request was refused", path=scope["path"], error=type(error).__name__)

    return answer


def _fixed_paths(app: Any) -> set[str]:
    """The paths of an application that have no parameters."""
    paths = (getattr(route, "path", "") for route in app.routes)
    return {path for path in paths if path and "{" not in path}


def _replayed(body: bytes, receive: Any) -> Any:
    """``receive`` for an application that reads the body once more."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return messages.pop() if messages else await receive()

    return again
