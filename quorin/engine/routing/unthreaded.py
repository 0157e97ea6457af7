"""Requests to other servers from an event loop: without a thread where connections are kept, as they mostly are."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httptools

from quorin.engine.routing.connections import Answered, UnansweredError, abandon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quorin.engine.routing.connections import Connection, Connections, Outgoing

_PART_BYTES = 1 << 18


async def exchange(
    connections: Connections, requests: Sequence[Outgoing], *, timeout_seconds: float
) -> list[Answered | UnansweredError]:
    """As :meth:`Connections.exchange`."""
    deadline = time.monotonic() + timeout_seconds
    one_by_one = [_answer(connections, request, deadline, timeout_seconds) for request in requests]
    return [await one_by_one[0]] if len(one_by_one) == 1 else await asyncio.gather(*one_by_one)


async def _answer(
    connections: Connections, request: Outgoing, deadline: float, timeout_seconds: float
) -> Answered | UnansweredError:
    kept = connections.take(request.url, is_plain=True)
    if kept is not None:
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await _on(kept, request)
        except TimeoutError:
            abandon(kept)
            return UnansweredError(f"no answer within {1000 * timeout_seconds:g} ms")
        except httptools.HttpParserError as error:
            abandon(kept)
            return UnansweredError(f"no HTTP: {error}")
        except OSError:
            abandon(kept)  # The server may have closed it while it was idle.
        except BaseException:
            abandon(kept)
            raise
        else:
            if answer.is_kept:
                connections.put(request.url, kept)
            else:
                abandon(kept)
            return Answered(answer.parser.get_status_code(), b"".join(answer.parts))
    left = max(deadline - time.monotonic(), 0.0)
    [found] = await asyncio.to_thread(connections.exchange, [request], timeout_seconds=left)
    return found


class _Answer:
    """An answer that arrives."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.parts: list[bytes] = []
        self.is_whole = self.is_kept = False

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.is_whole, self.is_kept = True, self.parser.should_keep_alive()


async def _on(connection: Connection, request: Outgoing) -> _Answer:
    """The answer to a request on a connection.

    :raises OSError: if it breaks, or ends before.
    """
    loop, answer, sock = asyncio.get_running_loop(), _Answer(), connection.sock
    sock.setblocking(False)
    await loop.sock_sendall(sock, _message(request))
    while not answer.is_whole:
        part = await loop.sock_recv(sock, _PART_BYTES)
        if not part:
            raise ConnectionResetError
        answer.parser.feed_data(part)
    return answer


def _message(request: Outgoing) -> bytes:
    parts = urlsplit(request.url)
    head = [f"POST {parts.path.rstrip('/')}{request.path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
    head += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([*head, f"Content-Length: {len(request.body)}\r\n\r\n"]).encode("latin-1") + request.body
