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
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple
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


class Connection(http.client.HTTPConnection):
    """Sends a request as a whole: a server that gets its head first is woken twice."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unsent: list[bytes] = []

    def send(self, data: Any) -> None:
        """Keep a part of the request until :meth:`flush`."""
        self._unsent.append(data)

    def flush(self) -> None:
        """Send it, on a connection that is opened if need be."""
        parts, self._unsent = self._unsent, []
        super().send(b"".join(parts))


class _SecureConnection(Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class Within(NamedTuple):
    """Until when requests are to be answered, by the monotonic clock, and how long that was at first."""

    deadline: float
    timeout_seconds: float

    @classmethod
    def seconds(cls, timeout_seconds: float) -> Within:
        """From now on."""
        return cls(time.monotonic() + timeout_seconds, timeout_seconds)

    @property
    def left(self) -> float:
        """The seconds until then, a few at least."""
        return max(self.deadline - time.monotonic(), _LEAST_SECONDS)

    def limit(self, connection: http.client.HTTPConnection) -> None:
        """Let the next operation of a connection end in time. What has arrived by then can still be read.

        :raises TimeoutError: if the time is long over.
        """
        if self.deadline - time.monotonic() < -self.timeout_seconds:
            raise TimeoutError
        connection.timeout = self.left
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
        self._idle: dict[str, list[tuple[Connection, float]]] = {}
        self._look_again = 0.0
        self._start()
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """The connections are the parent's: the child only closes its copies of their descriptors."""
        for of_one in self._idle.values():
            for connection, _ in of_one:
                abandon(connection)
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
        within = Within.seconds(timeout_seconds)
        taken = [self.take(request.url) for request in requests]
        connecting = {i: self._connecting(requests[i], within) for i, kept in enumerate(taken) if kept is None}
        sent = {i: self._send(requests[i], kept, within) for i, kept in enumerate(taken) if kept is not None}
        answers = {i: self._receive(requests[i], one, within) for i, one in sent.items()}
        for i, answer in answers.items():
            if isinstance(answer, ClosedError):  # Maybe while it was idle.
                connecting[i] = self._connecting(requests[i], within)
        for i, future in connecting.items():
            answers[i] = self._receive(requests[i], _connected(future, within), within)
        return [answers[i] for i in range(len(requests))]

    def connecting(self, url: str, within: Within) -> Future[Connection | UnansweredError]:
        """A new connection, opened in a thread: a host that is away must not keep the others from being asked, and
        the look-up of its name has no limit.
        """
        return self._threads.submit(self._open, url, within)

    def _connecting(self, request: Outgoing, within: Within) -> Future[Connection | UnansweredError]:
        """The same, on which the thread has sent a request."""

        def connect() -> Connection | UnansweredError:
            opened = self._open(request.url, within)
            return opened if isinstance(opened, UnansweredError) else self._send(request, opened, within)

        return self._threads.submit(connect)

    def _open(self, url: str, within: Within) -> Connection | UnansweredError:
        try:
            connection = self._new(url)
            try:
                within.limit(connection)
                connection.connect()
            except OSError as error:
                abandon(connection)
                return within.unanswered(error)
        except ValueError:  # Of the port, or of a host that is no name.
            return UnansweredError("not a URL that can be asked")
        return connection

    def _send(self, request: Outgoing, connection: Connection, within: Within) -> Connection | UnansweredError:
        path = urlsplit(request.url).path.rstrip("/") + request.path
        try:
            within.limit(connection)
            connection.request("POST", path, request.body, dict(request.headers))
            connection.flush()
        except (ConnectionResetError, BrokenPipeError) as error:
            abandon(connection)
            return ClosedError(str(within.unanswered(error)))
        except (OSError, http.client.HTTPException) as error:
            abandon(connection)
            return within.unanswered(error)
        return connection

    def _receive(
        self, request: Outgoing, connection: Connection | UnansweredError, within: Within
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
            abandon(connection)
            return ClosedError(str(within.unanswered(error)))
        except (OSError, http.client.HTTPException) as error:
            abandon(connection)
            return within.unanswered(error)
        self.put(request.url, connection)
        return answer

    def take(self, url: str) -> Connection | None:
        """A connection to a server that was kept, if there is one."""
        while True:
            with self._lock:
                idle = self._idle[url]
                kept = idle.pop() if idle else None
            if kept is None:
                return None
            connection, since = kept
            if time.monotonic() - since < _IDLE_SECONDS and _is_silent(connection.sock):
                return connection
            connection.close()

    def put(self, url: str, connection: Connection) -> None:
        """Keep a connection that has been answered."""
        if connection.sock is None:  # The server has asked to close it.
            return
        now = time.monotonic()
        with self._lock:
            old = self._forgotten(now)
            idle = self._idle[url]
            (idle if len(idle) < _MAX_IDLE else old).append((connection, now))
        for one, _ in old:
            one.close()

    def _forgotten(self, now: float) -> list[tuple[Connection, float]]:
        """Take out what has been idle for too long: nobody asks servers that are gone, and so finds their end."""
        if now < self._look_again:
            return []
        self._look_again = now + _IDLE_SECONDS
        before, self._idle = self._idle, defaultdict(list)
        old: list[tuple[Connection, float]] = []
        for url, of_one in before.items():
            for connection, since in of_one:
                (self._idle[url] if now - since < _IDLE_SECONDS else old).append((connection, since))
        return old

    def _new(self, url: str) -> Connection:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._tls_ca)
            return _SecureConnection(host, parts.port, context=self._tls)
        return Connection(host, parts.port)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._idle = defaultdict(list)
        self._threads = ThreadPoolExecutor(_MAX_CONNECTING, "quorin-connect")


def _connected(future: Future[Connection | UnansweredError], within: Within) -> Connection | UnansweredError:
    """The connection that a thread has opened, if it did so in time."""
    try:
        return future.result(within.left)
    except TimeoutError as error:
        future.cancel()
        future.add_done_callback(abandon_late)
        return within.unanswered(error)


def abandon_late(future: Future[Connection | UnansweredError]) -> None:
    """Close what a thread has opened for nobody."""
    if not future.cancelled() and not isinstance(late := future.result(), UnansweredError):
        abandon(late)


def _is_silent(sock: socket.socket | None) -> bool:
    """Whether an idle connection has nothing to read: what it has is its end."""
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def abandon(connection: http.client.HTTPConnection) -> None:
    """Close a connection without a word to the server: a forked child must not end its parent's TLS."""
    sock, connection.sock = connection.sock, None
    if sock is not None:
        descriptor = sock.detach()
        if descriptor >= 0:
            os.close(descriptor)
