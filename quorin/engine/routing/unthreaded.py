"""Requests to other servers from an event loop: without a thread where connections are kept, as they mostly are."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httptools

from quorin.engine.routing.connections import Answered, UnansweredError, abandon

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from quorin.engine.routing.connections import Connection, Connections, Outgoing

_PART_BYTES = 1 << 18


def exchange(
    connections: Connections, requests: Sequence[Outgoing], timeout_seconds: float
) -> Coroutine[Any, Any, list[Answered | UnansweredError]]:
    """As :meth:`Connections.exchange`, in the running event loop. What goes out on a connection that is kept is sent by
    the call, before its result is awaited.
    """
    deadline = time.monotonic() + timeout_seconds
    sent = [_sent(connections, request, timeout_seconds) for request in requests]
    return _answers(connections, requests, sent, deadline)


def _sent(connections: Connections, request: Outgoing, timeout_seconds: float) -> _Sent | None:
    kept = connections.take(request.url, is_plain=True)
    return None if kept is None else _Sent(connections, kept, request, timeout_seconds)


async def _answers(
    connections: Connections, requests: Sequence[Outgoing], sent: Sequence[_Sent | None], deadline: float
) -> list[Answered | UnansweredError]:
    async def answer(request: Outgoing, one: _Sent | None) -> Answered | UnansweredError:
        answered = None if one is None else await one.answer()
        if answered is None:
            left = max(deadline - time.monotonic(), 0.0)
            [answered] = await asyncio.to_thread(connections.exchange, [request], timeout_seconds=left)
        return answered

    one_by_one = [answer(*pair) for pair in zip(requests, sent, strict=True)]
    return [await one_by_one[0]] if len(one_by_one) == 1 else await asyncio.gather(*one_by_one)


class _Sent:
    """A request on a connection that was kept, and its answer as it arrives."""

    def __init__(
        self, connections: Connections, connection: Connection, request: Outgoing, timeout_seconds: float
    ) -> None:
        self._connections, self._connection, self._url = connections, connection, request.url
        self._loop = asyncio.get_running_loop()
        self._found: asyncio.Future[Answered | UnansweredError | None] = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._is_whole = self._is_kept = False
        late = UnansweredError(f"no answer within {1000 * timeout_seconds:g} ms")
        self._timer = self._loop.call_later(timeout_seconds, self._end, late)
        connection.sock.setblocking(False)
        self._unsent = memoryview(_message(request))
        self._descriptor = connection.sock.fileno()
        self._loop.add_reader(self._descriptor, self._receive)
        self._send()

    async def answer(self) -> Answered | UnansweredError | None:
        """The answer; None if the connection was closed, as the server may have done while it was idle."""
        try:
            return await self._found
        except asyncio.CancelledError:
            self._end(None)
            raise

    def on_body(self, part: bytes) -> None:
        """A part of the body has arrived."""
        self._parts.append(part)

    def on_message_complete(self) -> None:
        """All of the answer has arrived."""
        self._is_whole, self._is_kept = True, self._parser.should_keep_alive()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._connection.sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._end(None)
            return
        if self._unsent:
            self._loop.add_writer(self._descriptor, self._send)
        else:
            self._loop.remove_writer(self._descriptor)

    def _receive(self) -> None:
        try:
            part = self._connection.sock.recv(_PART_BYTES)
            self._parser.feed_data(part)
        except BlockingIOError:
            return
        except OSError:
            self._end(None)
        except httptools.HttpParserError as error:
            self._end(UnansweredError(f"no HTTP: {error}"))
        else:
            if self._is_whole:
                answered = Answered(self._parser.get_status_code(), b"".join(self._parts))
                self._end(answered)
            elif not part:
                self._end(None)

    def _end(self, found: Answered | UnansweredError | None) -> None:
        if self._descriptor < 0:
            return
        self._timer.cancel()
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        self._descriptor = -1
        if self._is_kept and isinstance(found, Answered):
            self._connections.put(self._url, self._connection)
        else:
            abandon(self._connection)
        if not self._found.done():
            self._found.set_result(found)


def _message(request: Outgoing) -> bytes:
    parts = urlsplit(request.url)
    head = [f"POST {parts.path.rstrip('/')}{request.path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
    head += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([*head, f"Content-Length: {len(request.body)}\r\n\r\n"]).encode("latin-1") + request.body
