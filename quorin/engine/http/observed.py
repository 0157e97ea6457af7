"""What is seen of every request: its counts, its line in the access log, and the trace that it belongs to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quorin import logging
from quorin.engine.counting.requests import APPLICATION, SHORT, PathCounter, count_refused
from quorin.engine.http.tracing import trace_context

if TYPE_CHECKING:
    from quorin.engine.http.limits import Limits
    from quorin.engine.http.reply import Direct, Headers, Reply

_OTHER = "other"
"""The path of all requests for paths that the application does not list: what clients invent must not become series."""

_REASONS = {400: "malformed", 401: "token", 408: "slow", 413: "limits", 431: "limits", 503: "connections"}


@dataclass(frozen=True, slots=True)
class Observing:
    """Makes an application that is observed, in each worker."""

    create: Callable[[], Any]
    access_log: bool
    log_json: bool | None

    def __call__(self) -> Observed:
        """The application of this process."""
        if self.access_log:
            logging.configure(json=self.log_json)
        return Observed(self.create(), access_log=self.access_log)


@dataclass(slots=True)
class _Exchange:
    """A request and its answer; the sizes are of their bodies. No status: the client went away before."""

    method: str | None
    path: str
    status: int | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    rows: int = 0
    features: int = 0


class Observed:
    """An ASGI application whose requests are counted, logged and traced; the protocol reports those of the short way.

    The application lists its ``paths``, which become labels of metrics. In ``http.response.start`` it may say the
    ``rows`` and ``features`` of a request.
    """

    def __init__(self, app: Any, *, access_log: bool = False) -> None:
        self._app = app
        self.direct: dict[bytes, Direct] = getattr(app, "direct", {})
        self.limits: Limits = app.limits
        self.token: bytes | None = getattr(app, "token", None)
        self._short = {path: PathCounter(path.decode(), SHORT) for path in self.direct}
        paths = {*getattr(app, "paths", ()), *(path.decode() for path in self.direct)}
        self._application = {path: PathCounter(path, APPLICATION) for path in paths}
        self._waiting = {path: self._application[path.decode()] for path in self.direct}
        self._other = PathCounter(_OTHER, APPLICATION)
        self._log = logging.get_logger("quorin.access") if access_log else None
        self._trace = trace_context()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Have the application answer, and count what it does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope["method"], scope["raw_path"].decode("ascii"))
        counter = self._application.get(scope["path"], self._other)
        started = time.perf_counter_ns()
        trace = self.enter(scope["headers"])
        counter.begin()
        try:
            await self._app(scope, _counting_body(exchange, receive), _noting_answer(exchange, send))
        except Exception:
            exchange.status = exchange.status or 500  # As uvicorn answers for the application.
            raise
        finally:
            counter.end()
            elapsed_ns = time.perf_counter_ns() - started
            if exchange.status is not None:
                counter.count(exchange.status, exchange.rows, exchange.features, elapsed_ns)
            self._write(exchange, elapsed_ns)
            if trace is not None:
                trace.close()

    def enter(self, headers: Headers) -> ExitStack | None:
        """Continue the trace of a request until the stack is closed; None if it has none."""
        return None if self._trace is None else self._trace.enter(headers)

    @contextmanager
    def in_flight(self, path: bytes) -> Iterator[None]:
        """A POST that was received on the short way waits for other nodes."""
        counter = self._waiting[path]
        counter.begin()
        try:
            yield
        finally:
            counter.end()

    def answered(
        self, path: bytes, reply: Reply, received_bytes: int, elapsed_ns: int, *, has_waited: bool = False
    ) -> None:
        """A POST was answered on the short way, or after other nodes had answered."""
        counter = self._waiting[path] if has_waited else self._short[path]
        counter.count(reply.status, reply.rows, reply.features, elapsed_ns)
        if self._log is not None:
            size = len(reply.body)
            exchange = _Exchange("POST", path.decode(), reply.status, received_bytes, size, reply.rows)
            self._write(exchange, elapsed_ns)

    def refused(self, status: int, method: str | None, url: bytes, received_bytes: int) -> None:
        """A request was refused before the application saw it; without a method if its head had not arrived."""
        count_refused(_REASONS[status])
        if self._log is not None:
            path = url.partition(b"?")[0].decode("ascii", "backslashreplace")
            self._write(_Exchange(method, path, status, received_bytes), None)

    def _write(self, exchange: _Exchange, elapsed_ns: int | None) -> None:
        """A line of the access log. The query, the headers and the bodies of requests are in none."""
        if self._log is not None:
            self._log.info(
                "request",
                method=exchange.method,
                path=exchange.path,
                status=exchange.status,
                received_bytes=exchange.received_bytes,
                sent_bytes=exchange.sent_bytes,
                milliseconds=None if elapsed_ns is None else round(elapsed_ns / 1e6, 3),
                rows=exchange.rows,
            )


def _counting_body(exchange: _Exchange, receive: Any) -> Any:
    async def counting() -> Any:
        message = await receive()
        exchange.received_bytes += len(message.get("body", b""))
        return message

    return counting


def _noting_answer(exchange: _Exchange, send: Any) -> Any:
    async def noting(message: Any) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            exchange.rows, exchange.features = message.get("rows", 0), message.get("features", 0)
        else:
            exchange.sent_bytes += len(message.get("body", b""))
        await send(message)

    return noting
