"""Requests to other servers from an event loop. Threads only open connections."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httptools

from quorin.engine.routing.connections import Answered, UnansweredError, Within, abandon, abandon_late

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from quorin.engine.routing.connections import Connection, Connections, Outgoing

_PART_BYTES = 1 << 18
"""More than a record of TLS, so that nothing of one is left behind in memory, where no event tells of it."""
_LATER = BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError


def exchange(
    connections: Connections, requests: Sequence[Outgoing], timeout_seconds: float
) -> Coroutine[Any, Any, list[Answered | UnansweredError]]:
    """As :meth:`Connections.exchange`, in the running event loop. What goes out on a connection that is kept is sent by
    the call, before its result is awaited.
    """
    within = Within.seconds(timeout_seconds)
    taken = [connections.take(request.url) for request in requests]
    sent = [
        None if kept is None else _Sent(connections, kept, request, within)
        for request, kept in zip(requests, taken, strict=True)
    ]
    return _answers(connections, requests, sent, within)


async def _answers(
    connections: Connections, requests: Sequence[Outgoing], sent: Sequence[_Sent | None], within: Within
) -> list[Answered | UnansweredError]:
    async def answer(request: Outgoing, one: _Sent | None) -> Answered | UnansweredError:
        answered = None if one is None else await one.answer()
        if answered is not None:
            return answered
        opened = await _opened(connections, request.url, within)
        if isinstance(opened, UnansweredError):
            return opened
        answered = await _Sent(connections, opened, request, within).answer()
        return UnansweredError("the connection ended before the answer") if answered is None else answered

    one_by_one = [answer(*pair) for pair in zip(requests, sent, strict=True)]
    return [await one_by_one[0]] if len(one_by_one) == 1 else await asyncio.gather(*one_by_one)


async def _opened(connections: Connections, url: str, within: Within) -> Connection | UnansweredError:
    """A new connection to a server, or why there is none."""
    opening = connections.connecting(url, within)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(opening), within.left)
    except TimeoutError as error:
        opening.add_done_callback(abandon_late)
        return within.unanswered(error)
    except asyncio.CancelledError:
        opening.add_done_callback(abandon_late)
        raise


class _Sent:
    """A request on a connection, and its answer as it arrives."""

    def __init__(self, connections: Connections, connection: Connection, request: Outgoing, within: Within) -> None:
        self._connections, self._connection, self._url = connections, connection, request.url
        self._loop = asyncio.get_running_loop()
        self._found: asyncio.Future[Answered | UnansweredError | None] = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._is_whole = self._is_kept = False
        self._unsent = memoryview(_message(request))
        connection.sock.setblocking(False)
        self._descriptor = connection.sock.fileno()
        self._timer = self._loop.call_later(within.left, self._end, within.unanswered(TimeoutError()))
        self._loop.add_reader(self._descriptor, self._receive)
        self._send()

    async def answer(self) -> Answered | UnansweredError | None:
        """The answer; None if the connection ended before it, as one may that was idle."""
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
        except _LATER:
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
        except _LATER:
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
