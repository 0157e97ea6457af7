"""uvicorn's HTTP protocol, with a short way for the requests that come most.

uvicorn starts a task and calls an ASGI application for every request, which costs several times a read. The short way
calls a plain function as soon as the body has arrived, and writes its reply at once, or when the other nodes that it
needs have answered. Only a whole, simple request takes it: a POST to a known path, alone on its connection. Every other
one, and every one that the function does not answer, goes uvicorn's way with what was received.
"""

from __future__ import annotations

import contextvars
import hmac
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quorin.engine.http.reply import SHOW_LIFE, Direct, Reply, error_reply

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from quorin.engine.http.limits import Limits
    from quorin.engine.http.observed import Observed
    from quorin.engine.http.reply import Headers, Pending

_AROUND_HEADER = len(b": \r\n")
_OPEN_PATHS = (b"/", b"/health", b"/ready")
_FAILED = error_reply(500, "Internal Server Error")


class RefusedRequestError(Exception):
    """A request beyond the limits, or without the token."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class DirectProtocol(HttpToolsProtocol):
    """One connection to an application with the attributes ``direct`` (functions by path), ``limits`` and ``token``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._observed: Observed = self.app
        self._direct: Mapping[bytes, Direct] = self._observed.direct
        self._limits: Limits = self._observed.limits
        self._token: bytes | None = self._observed.token
        self.url = b""
        self._function: Direct | None = None
        self._chunks: list[bytes] = []
        self._body_size = 0
        self._is_closing = False
        self._context = contextvars.copy_context()
        self._own: RequestResponseCycle | None = None
        """Of the request that is being received, if the application answers it."""
        self._refusal: Reply | None = None
        """Of a request behind others that are not answered yet. Nothing behind it is read."""
        self._requests = 0
        self._in_head = False
        self._head_size = 0
        self._at_most_head = 0
        """The bytes that were received since before a head began, which a head without an end is among."""
        self._is_receiving = False
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # noqa: D102
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._end_patience()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived. The head is measured by what was received, as the parser keeps one without a bound."""
        if self._refusal is not None:
            return
        request = self._requests
        was_in_head = self._in_head
        self._at_most_head += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
            self._measure_head(len(data) if was_in_head and request == self._requests else 0)
            self._at_most_head = self._at_most_head if self._in_head else 0
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, RefusedRequestError):
                raise
            self._refuse(error.__context__)
        except RefusedRequestError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._refuse(RefusedRequestError(400, f"invalid HTTP: {error}"))
        except httptools.HttpParserUpgrade:
            self._is_receiving = False
            self._end_patience()
            if self._should_upgrade():
                self.handle_websocket_upgrade()
        if self._is_receiving:
            self._expect_request()

    def _measure_head(self, size: int) -> None:
        self._head_size = self._head_size + size if size else 0
        if self._in_head and self._head_size > self._limits.head_bytes:
            raise RefusedRequestError(431, f"expected at most {self._limits.head_bytes} bytes of headers")

    def on_message_begin(self) -> None:  # noqa: D102
        super().on_message_begin()
        self._requests += 1
        self._in_head = True
        self._function = self._own = None
        self._body_size = 0
        self._is_receiving = True

    def on_headers_complete(self) -> None:
        """Choose the way of the request."""
        self._in_head = False
        if self._at_most_head > self._limits.head_bytes:
            headers = sum(len(name) + len(value) + _AROUND_HEADER for name, value in self.headers)
            if headers + len(self.url) > self._limits.head_bytes:
                raise RefusedRequestError(431, f"expected at most {self._limits.head_bytes} bytes of headers")
        if self._token is not None:
            _check_token(self._token, self.url, self.headers)
        function = self._direct.get(self.url)
        is_alone = self.cycle is None or self.cycle.response_complete
        if (
            function is None
            or not is_alone
            or self.parser.get_method() != b"POST"
            or self.expect_100_continue
            or self.parser.should_upgrade()
            or self.flow.write_paused
            or len(self.connections) > (self.limit_concurrency or 0)
            or len(self.tasks) >= (self.limit_concurrency or 0)
        ):
            self._hand_over()
            self._own = self.cycle
            return
        self._function = function
        self._chunks = []

    def on_body(self, body: bytes) -> None:  # noqa: D102
        self._body_size += len(body)
        if self._body_size > self._limits.body_bytes:
            raise RefusedRequestError(413, f"expected a body of at most {self._limits.body_bytes} bytes")
        if self._function is None:
            super().on_body(body)
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:  # noqa: D102
        self._is_receiving = False
        self._end_patience()
        self._own = None
        function, self._function = self._function, None
        if function is None:
            super().on_message_complete()
            return
        if self.transport.is_closing():
            return  # What a client sends behind a request that ends the connection has no answer.
        trace = self._observed.enter(self.headers)
        try:
            self._answer(function, self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))
        finally:
            if trace is not None:
                trace.close()

    def _answer(self, function: Direct, body: bytes) -> None:
        started = time.perf_counter_ns()
        try:
            reply = function(body, self.headers)
        except Exception:
            self.logger.exception("a request failed")
            reply = _FAILED
        if isinstance(reply, Reply):
            is_alive = not self._is_closing and self.parser.get_http_version() != "1.0"
            self._write(reply, is_kept=is_alive and self.parser.should_keep_alive())
            self._observed.answered(self.url, reply, len(body), time.perf_counter_ns() - started)
            self.on_response_complete()
            return
        if reply is None:
            self._hand_over()
        else:
            self._run(partial(self._answer_later, reply, self.url, len(body), started))
        super().on_body(body)
        super().on_message_complete()

    async def _answer_later(
        self, pending: Pending, url: bytes, size: int, started: int, scope: Any, receive: Any, send: Any
    ) -> None:
        """An application for one request, whose answer is written as those of the short way."""
        cycle = send.__self__  # A method of uvicorn's cycle: that of the protocol may be the next request's by now.
        with self._observed.in_flight(url):
            try:
                reply = await pending
            except Exception:
                self.logger.exception("a request failed")
                reply = _FAILED
        if reply is None:
            await self._observed(scope, receive, send)
            return
        cycle.response_started = cycle.response_complete = True
        self._observed.answered(url, reply, size, time.perf_counter_ns() - started, has_waited=True)
        if not self.transport.is_closing():
            self._write(reply, is_kept=cycle.keep_alive)
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Begin the next request in the connection's context: what the one before has set in its own is not for it."""
        if self._refusal is not None and not self.pipeline and not self.transport.is_closing():
            self._write(self._refusal, is_kept=False)
        self._context.run(super().on_response_complete)
        if self._patience is not None:  # It is read on from now.
            self._end_patience()
            self._expect_request()

    def _hand_over(self) -> None:
        """Have the application answer; uvicorn refuses what is beyond the limit of connections."""
        if max(len(self.connections), len(self.tasks)) >= (self.limit_concurrency or 0):
            self._count_refused(503)
        self._begin()
        self.scope[SHOW_LIFE] = partial(_show_life, self)  # type: ignore[literal-required]

    def _run(self, application: Any) -> None:
        """Have uvicorn call an application for this request, whatever the limit of connections."""
        own = self.app, self.limit_concurrency
        self.app, self.limit_concurrency = application, None
        self._begin()
        self.app, self.limit_concurrency = own

    def _begin(self) -> None:
        super().on_headers_complete()
        if self._is_closing:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close when the request that is being received is answered; at once if there is none."""
        if self._function is None:
            super().shutdown()
        else:
            self._is_closing = True

    def _expect_request(self) -> None:
        """Close the connection if a request does not arrive in time; one that arrives at once needs no timer."""
        if self._patience is None and not self.transport.is_closing():
            self._patience = self.loop.call_later(self._limits.request_seconds, self._refuse_slow)

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _refuse_slow(self) -> None:
        self._patience = None
        if self.flow.read_paused:  # What is not read cannot arrive.
            self._expect_request()
            return
        self._refuse(RefusedRequestError(408, f"no whole request within {self._limits.request_seconds:g} seconds"))

    def _refuse(self, refused: RefusedRequestError) -> None:
        self._is_receiving = False
        self._end_patience()
        if self.transport.is_closing():
            return
        self._count_refused(refused.status)
        reply, own = error_reply(refused.status, str(refused)), self._own
        is_queued = own is not None and bool(self.pipeline) and self.pipeline[0][0] is own
        if is_queued:
            self.pipeline.popleft()
        if is_queued or (own is None and self.cycle is not None and not self.cycle.response_complete):
            self._refusal = reply
            self.flow.pause_reading()
        elif own is not None and own.response_started:
            self.transport.close()  # In the middle of another answer, no other can be given.
        else:
            if own is not None:
                own.disconnected = True
                own.message_event.set()
            self._write(reply, is_kept=False)

    def _count_refused(self, status: int) -> None:
        method = None if self._in_head or not self._requests else self.parser.get_method().decode()
        self._observed.refused(status, method, self.url, self._body_size)

    def _write(self, reply: Reply, *, is_kept: bool) -> None:
        self.transport.write(_encoded(reply, self.server_state.default_headers, is_kept=is_kept))
        if not is_kept:
            self.transport.close()


def _encoded(reply: Reply, headers: Iterable[tuple[bytes, bytes]], *, is_kept: bool) -> bytes:
    parts = [STATUS_LINE[reply.status]]
    for name, value in (*headers, *reply.headers):
        parts += name, b": ", value, b"\r\n"
    parts += b"content-type: ", reply.content_type, b"\r\ncontent-length: %d\r\n" % len(reply.body)
    if not is_kept:
        parts.append(b"connection: close\r\n")
    parts += b"\r\n", reply.body
    return b"".join(parts)


def _show_life(protocol: DirectProtocol) -> None:
    """Tell a client that waits for the head of an answer that one will come: its time-out begins anew."""
    if protocol.parser.get_http_version() != "1.0" and not protocol.transport.is_closing():
        protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _check_token(token: bytes, url: bytes, headers: Headers) -> None:
    path = url.partition(b"?")[0]
    given = next((value for name, value in headers if name == b"authorization"), b"")
    if path not in _OPEN_PATHS and not hmac.compare_digest(given, b"Bearer " + token):
        raise RefusedRequestError(401, "expected the header Authorization: Bearer with the token of this server")
