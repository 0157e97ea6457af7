"""Connections of this process to other servers: kept open, and used for several requests at once."""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from quorin.engine import forks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_IDLE = 32
_IDLE_SECONDS = 20.0
"""A server closes connections that were silent for its ``--keep-alive``, a minute by default."""
_PART_BYTES = 1 << 20
_LEAST_SECONDS = 0.01
_MAX_CONNECTING = 16


class Outgoing(NamedTuple):
    """A POST to ``path`` of the server at ``url``."""

    url: str
    path: str
    body: bytes
    headers: Mapping[str, str]


class Answered(NamedTuple):
    """What a server answered."""

    status: int
    body: bytes


class UnansweredError(Exception):
    """No answer; the text says why, without what was sent."""


class ClosedError(UnansweredError):
    """The server has closed the connection. If it was kept, that may have been while it was idle."""


class _Within(NamedTuple):
    """Until when requests are to be answered, by the monotonic clock, and how long that was at first."""

    deadline: float
    timeout_seconds: float

    def limit(self, connection: http.client.HTTPConnection) -> None:
        """Let the next operation of a connection end in time. What has arrived by then can still be read.

        :raises TimeoutError: if the time is long over.
        """
        left = self.deadline - time.monotonic()
        if left < -self.timeout_seconds:
            raise TimeoutError
        connection.timeout = max(left, _LEAST_SECONDS)
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)

    def unanswered(self, error: Exception) -> UnansweredError:
        """Why there is no answer."""
        if isinstance(error, TimeoutError):
            return UnansweredError(f"no answer within {1000 * self.timeout_seconds:g} ms")
        if isinstance(error, ssl.SSLError):
            return UnansweredError(f"TLS: {error.reason or error}")
        if isinstance(error, socket.gaierror):
            return UnansweredError(str(error.strerror))
        if isinstance(error, OSError) and error.errno:
            return UnansweredError(os.strerror(error.errno))
        return UnansweredError(f"the connection ended before the answer ({type(error).__name__})")


class Connections:
    """Idle connections by server. Threads may share them; a forked child begins without any.

    ``tls_ca`` has the certificates to trust in PEM, by default the system's.
    """

    def __init__(self, *, tls_ca: str | os.PathLike[str] | None = None) -> None:
        self._tls_ca = tls_ca
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[str, list[tuple[http.client.HTTPConnection, float]]] = {}
        self._start()
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """The connections are the parent's: the child only closes its copies of their descriptors."""
        for of_one in self._idle.values():
            for connection, _ in of_one:
                _abandon(connection)
        self._start()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, defaultdict(list)
        for of_one in idle.values():
            for connection, _ in of_one:
                connection.close()

    def exchange(self, requests: Sequence[Outgoing], *, timeout_seconds: float) -> list[Answered | UnansweredError]:
        """The answers to requests, which are all on their way at the same time, in the order of the requests.

        Each has ``timeout_seconds`` in all. Never raises for what a server does or leaves.
        """
        within = _Within(time.monotonic() + timeout_seconds, timeout_seconds)
        taken = [self._take(request.url) for request in requests]
        # A host that is away must not keep the others from being asked.
        connecting = {
            index: self._threads.submit(self._send, requests[index], connection, is_kept, within)
            for index, (connection, is_kept) in enumerate(taken)
            if not is_kept and len(requests) > 1
        }
        answers: list[Answered | UnansweredError | None] = [None] * len(requests)
        sent = {
            index: self._send(requests[index], connection, is_kept, within)
            for index, (connection, is_kept) in enumerate(taken)
            if index not in connecting
        }
        for index, one in sent.items():
            answers[index] = answer = self._receive(requests[index], one, within)
            if isinstance(answer, ClosedError) and taken[index][1]:
                again = self._send(requests[index], self._new(requests[index].url), False, within)
                answers[index] = self._receive(requests[index], again, within)
        for index, future in connecting.items():
            answers[index] = self._receive(requests[index], future.result(), within)
        return [answer for answer in answers if answer is not None]

    def _send(
        self, request: Outgoing, connection: http.client.HTTPConnection, is_kept: bool, within: _Within
    ) -> http.client.HTTPConnection | UnansweredError:
        path = urlsplit(request.url).path.rstrip("/") + request.path
        while True:
            try:
                within.limit(connection)
                connection.request("POST", path, request.body, dict(request.headers))
            except (OSError, http.client.HTTPException) as error:
                _abandon(connection)
                if not is_kept:
                    return within.unanswered(error)
                connection, is_kept = self._new(request.url), False  # The server has closed the idle one this moment.
            else:
                return connection

    def _receive(
        self, request: Outgoing, connection: http.client.HTTPConnection | UnansweredError, within: _Within
    ) -> Answered | UnansweredError:
        if isinstance(connection, UnansweredError):
            return connection
        try:
            within.limit(connection)
            response = connection.getresponse()
            parts = []
            while part := response.read1(_PART_BYTES):
                parts.append(part)
                within.limit(connection)
            answer = Answered(response.status, b"".join(parts))
            if response.length:
                raise http.client.IncompleteRead(answer.body, response.length)
            response.close()  # The connection is ready for the next request only then.
        except (ConnectionResetError, BrokenPipeError) as error:  # RemoteDisconnected is one of them.
            _abandon(connection)
            return ClosedError(str(within.unanswered(error)))
        except (OSError, http.client.HTTPException) as error:
            _abandon(connection)
            return within.unanswered(error)
        self._put(request.url, connection)
        return answer

    def _take(self, url: str) -> tuple[http.client.HTTPConnection, bool]:
        """A connection to a server, and whether it was kept."""
        while True:
            with self._lock:
                idle = self._idle[url]
                kept = idle.pop() if idle else None
            if kept is None:
                return self._new(url), False
            connection, since = kept
            if time.monotonic() - since < _IDLE_SECONDS and _is_silent(connection.sock):
                return connection, True
            connection.close()

    def _put(self, url: str, connection: http.client.HTTPConnection) -> None:
        if connection.sock is None:  # The server has asked to close it.
            return
        with self._lock:
            idle = self._idle[url]
            is_kept = len(idle) < _MAX_IDLE
            if is_kept:
                idle.append((connection, time.monotonic()))
        if not is_kept:
            connection.close()

    def _new(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._tls_ca)
            return http.client.HTTPSConnection(host, parts.port, context=self._tls)
        return http.client.HTTPConnection(host, parts.port)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._idle = defaultdict(list)
        self._threads = ThreadPoolExecutor(_MAX_CONNECTING, "quorin-connect")


def _is_silent(sock: socket.socket | None) -> bool:
    """Whether an idle connection has nothing to read: what it has is its end."""
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _abandon(connection: http.client.HTTPConnection) -> None:
    """Close a connection without a word to the server: a forked child must not end its parent's TLS."""
    sock, connection.sock = connection.sock, None
    if sock is not None:
        descriptor = sock.detach()
        if descriptor >= 0:
            os.close(descriptor)
