"""The application that serves the segments of a connection."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa

from quorin import assembly
from quorin.engine.http import asgi
from quorin.engine.http.catalogue import Catalogue
from quorin.engine.http.donor import Donor
from quorin.engine.http.limits import Limits
from quorin.engine.http.openapi import description
from quorin.engine.http.page import page
from quorin.engine.http.reply import Reply, error_reply
from quorin.engine.http.requests import (
    JSON,
)
from quorin.engine.http.rows import SegmentRows, guarded
from quorin.engine.memory.addresses import register_address
from quorin.engine.routing.router import Elsewhere
from quorin.shm import SegmentRegistry

if TYPE_CHECKING:
    from quorin.engine.memory.addresses import RegisteredAddress
    from quorin.engine.routing.router import Router

_SWITCH_SECONDS = 0.001
"""How long a thread keeps the interpreter's lock from the thread that answers small requests."""


@dataclass(frozen=True, slots=True)
class SegmentServer:
    """Makes the application that serves a connection's segments, in each worker: what :func:`quorin.http.run` takes.

    ``schemas`` are the names of those to serve, all if empty. ``connection`` must be a text, for the other processes.
    ``transfers`` is how many new nodes may copy this node's rows at once. ``pins`` are generations to stay with, by
    schema, as :meth:`quorin.shm.SegmentRegistry.open_current` takes them. ``elsewhere`` says how other nodes are asked
    for rows that this one does not hold; they get the same ``token``.
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
    elsewhere: Elsewhere = field(default_factory=Elsewhere)

    def advertise(self, url: str) -> RegisteredAddress:
        """Let other nodes ask this one at a URL, while the result is kept.

        :raises ValueError: for a URL of another form. :raises SharedMemoryError: if the node is another user's.
        """
        return register_address(
            SegmentRegistry(self.connection, shm_dir=self.shm_dir, namespace=self.namespace).node, url
        )

    def __call__(self) -> SegmentApplication:
        """The application of this process.

        :raises ConnectionFailedError: if the control plane is away, and the node has never met the deployment.
        """
        sys.setswitchinterval(_SWITCH_SECONDS)
        assembly.prewarm()
        pa.array(np.empty(0))  # Arrow imports pandas, if there is one, at the first array from NumPy.
        registry = SegmentRegistry(self.connection, shm_dir=self.shm_dir, namespace=self.namespace)
        donor = Donor(registry, names=self.schemas, at_once=self.transfers, max_lag_seconds=self.max_lag_seconds)
        router = self.elsewhere.router(registry.node, self.token)
        return SegmentApplication(Catalogue(registry, self.schemas, self.pins), donor, router, self)


class SegmentApplication:
    """ASGI, and what the protocol needs beyond it: ``direct``, ``limits`` and ``token``."""

    def __init__(self, catalogue: Catalogue, donor: Donor, router: Router, options: SegmentServer) -> None:
        self._catalogue = catalogue
        self._donor = donor
        self._rows = SegmentRows(catalogue, options.limits, router, options.elsewhere.missing_partitions)
        self._max_lag_seconds = options.max_lag_seconds
        self._openapi = orjson.dumps(description(has_token=options.token is not None))
        self.limits = options.limits
        self.token = None if options.token is None else options.token.encode()
        self._gets: dict[str, Callable[[], Reply]] = {
            "/": page,
            "/v1/schemas": self._schemas,
            "/health": partial(Reply, 200, JSON, b'{"status":"ok"}'),
            "/ready": self._ready,
            "/openapi.json": partial(Reply, 200, JSON, self._openapi),
        }
        self.paths = (*self._rows.paths, *self._gets, donor.path)
        self.direct = self._rows.direct

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await asgi.live(receive, send)
            return
        path, method, headers = scope["path"], scope["method"], scope["headers"]
        if path == self._donor.path and method == "GET":
            await self._donor(scope, receive, send)
            return
        if path in self._rows.paths and method == "POST":
            body = await asgi.receive_body(receive)
            if body is None:
                return
            reply = await asyncio.to_thread(self._rows.reply, path, body, headers)
        elif path in self._gets and method in ("GET", "HEAD"):
            reply = await asyncio.to_thread(guarded, self._gets[path])
        elif path in self.paths:
            allowed = b"POST" if path in self._rows.paths else b"GET, HEAD" if path in self._gets else b"GET"
            detail = f"{path}: expected {allowed.decode()}, got {method}"
            reply = error_reply(405, detail, (b"allow", allowed))
        else:
            paths = ", ".join(self.paths)
            reply = error_reply(404, f"there is no {path}; there are: {paths}")
        await asgi.send_reply(send, reply)

    def _schemas(self) -> Reply:
        return Reply(200, JSON, orjson.dumps({"schemas": self._catalogue.describe()}))

    def _ready(self) -> Reply:
        found = self._catalogue.readiness(self._max_lag_seconds)
        is_ready = bool(found) and not any(one.problem for one in found)
        text = orjson.dumps({"ready": is_ready, "schemas": [one.as_dict() for one in found]})
        return Reply(200 if is_ready else 503, JSON, text)
