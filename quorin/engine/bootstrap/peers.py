"""Rows from another node over HTTP: the snapshot that its ``quorin serve`` sends becomes a segment of this node.

Nothing is current before the whole snapshot has been checked. A transfer that is cut, or whose bytes were damaged on
the way, leaves nothing, and the next node is asked.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from quorin.engine.bootstrap import names
from quorin.engine.bootstrap.restore import UnfitSnapshotError, received
from quorin.engine.format.segment import format_version
from quorin.engine.paths import absolute
from quorin.engine.urls import HTTP_FORM, is_http, shown
from quorin.errors import ConnectionFailedError, CorruptSnapshotError, PeerUnavailableError
from quorin.logging import get_logger

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from quorin.engine.bootstrap.image import Progress
    from quorin.engine.bootstrap.names import Wanted
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

SNAPSHOT_PATH = "/v1/snapshot"
MEDIA_TYPE = "application/vnd.quorin.snapshot"
NAME_HEADER = "quorin-snapshot"

_OK, _NOT_FOUND, _BUSY = 200, 404, 429
_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS, _LOOK_SECONDS = 0.25, 4.0, 0.25
_MAX_SHOWN = 2_000
_random = secrets.SystemRandom()

_log = get_logger(__name__)


class PeerBusyError(PeerUnavailableError):
    """The peer sends to other nodes now."""


class Peer(NamedTuple):
    """One address of a server: what :func:`socket.create_connection` takes, and the URL that led to it."""

    url: str
    address: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.url} ({self.address[0]})"


class Peers:
    """Nodes that send their rows to a node that has none: the URLs of their ``quorin serve``.

    A host may have many addresses, as a headless service of Kubernetes does; all of them are peers, and are asked in
    random order. If none sends the rows and one is busy, they are asked again, less and less often, for
    ``patience_seconds``. ``token_file`` has the token that the peers expect, and is read for each request; ``tls_ca``
    the certificates to trust in PEM, by default the system's. ``timeout_seconds`` bounds the time to connect, and each
    wait for bytes; a peer that copies its rows shows each second that it does.

    :raises ValueError: for a URL of another form, and for none.
    """

    def __init__(
        self,
        urls: Iterable[str],
        *,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        patience_seconds: float = 30.0,
        timeout_seconds: float = 30.0,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        for url in self._urls:
            if not is_http(url):
                raise ValueError(f"expected {HTTP_FORM}, got {shown(url)!r}")
        if not self._urls:
            raise ValueError("expected the URL of at least one peer, got none")
        self._token_file = None if token_file is None else absolute(token_file)
        self._tls_ca = None if tls_ca is None else absolute(tls_ca)
        self._patience_seconds = patience_seconds
        self._timeout_seconds = timeout_seconds

    def __repr__(self) -> str:
        return f"<Peers {self.address}>"

    @property
    def address(self) -> str:
        """The URLs, for texts."""
        return ", ".join(self._urls)

    def segment(
        self,
        schema: Schema,
        registry: SegmentRegistry,
        wanted: Wanted,
        *,
        progress: Progress,
    ) -> Segment | None:
        """A segment with the rows of a peer, open for writing; None if every peer says that it has none. Nothing points
        to it yet: ``registry.publish`` makes it current.

        A peer's rows fit as a snapshot does (:func:`quorin.snapshot.restore_newest`). ``progress`` is called with bytes
        done and all bytes; while peers copy their rows, or are busy, several times a second, with nothing done. A crash
        leaves a segment file that nothing points to, or one that ends in ``.pending``.

        :raises PeerUnavailableError: if no peer sends rows that fit, and one of them may have some.
        :raises SharedMemoryError: if there is no room in shared memory.
        """
        deadline, delay = time.monotonic() + self._patience_seconds, _FIRST_DELAY_SECONDS
        while True:
            failures: list[Exception] = []
            for peer in self._resolved(failures):
                try:
                    segment = self._received(peer, schema, registry, wanted, progress)
                except (PeerUnavailableError, CorruptSnapshotError, UnfitSnapshotError) as error:
                    _log.warning("peer_skipped", schema=schema.__name__, peer=str(peer), reason=str(error))
                    failures.append(error)
                    continue
                if segment is not None:
                    return segment
            if not failures:
                return None
            is_busy = any(isinstance(error, PeerBusyError) for error in failures)
            if not is_busy or time.monotonic() + delay > deadline:
                reasons = "; ".join(str(error) for error in failures)
                raise PeerUnavailableError(f"no peer sent the rows of {schema.__name__!r}: {reasons}")
            _wait(delay * _random.uniform(0.5, 1), progress)
            delay = min(2 * delay, _MAX_DELAY_SECONDS)

    def _resolved(self, failures: list[Exception]) -> list[Peer]:
        """All addresses of all URLs, in random order."""
        peers = set()
        for url in self._urls:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            try:
                found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            except OSError as error:
                failures.append(PeerUnavailableError(f"{url}: {error.strerror or error}"))
                continue
            peers |= {Peer(url, entry[4]) for entry in found}
        return _random.sample(sorted(peers), len(peers))

    def _received(
        self, peer: Peer, schema: Schema, registry: SegmentRegistry, wanted: Wanted, progress: Progress
    ) -> Segment | None:
        with self._asked(peer, schema, registry.partitioning.count, progress) as source:
            if source is None:
                return None
            unfit = names.why_unfit(source.file, wanted)
            if unfit is not None:
                raise UnfitSnapshotError(unfit)
            return received(source, schema, registry, wanted, any_log=False, progress=progress)

    @contextmanager
    def _asked(self, peer: Peer, schema: Schema, partitions: int, progress: Progress) -> Iterator[PeerSource | None]:
        """What a peer sends; None if it has no such segment."""
        parts = urlsplit(peer.url)
        # Earlier releases send only what they are asked for by its number.
        query = f"schema={quote(schema.__name__, safe='')}&format={format_version(schema, partitions)}"
        path = f"{parts.path}{SNAPSHOT_PATH}?{query}"
        connection = _Connection(peer, parts.hostname or "", self._timeout_seconds, self._tls(parts.scheme))
        try:
            try:
                connection.request("GET", path, headers=self._headers())
                response = _answer(connection, progress)
                text = b"" if response.status == _OK else response.read(_MAX_SHOWN)
            except (OSError, http.client.HTTPException) as error:
                raise PeerUnavailableError(f"{peer}: {_reason(error)}") from None
            if response.status not in (_OK, _NOT_FOUND):
                kind = PeerBusyError if response.status == _BUSY else PeerUnavailableError
                raise kind(f"{peer}: {response.status}: {_detail(text)}")
            yield PeerSource(str(peer), response) if response.status == _OK else None
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        return {"Authorization": f"Bearer {_token(self._token_file)}"}

    def _tls(self, scheme: str) -> ssl.SSLContext | None:
        if scheme != "https":
            return None
        try:
            return ssl.create_default_context(cafile=self._tls_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConnectionFailedError(f"{self._tls_ca}: expected certificates in PEM: {error}") from None


class PeerSource:
    """The snapshot in a response, read in order.

    :raises CorruptSnapshotError: if the response names none. :raises PeerUnavailableError: if the connection breaks.
    """

    def __init__(self, name: str, response: http.client.HTTPResponse) -> None:
        self.name, self.size = name, response.length or 0
        stated = response.headers.get(NAME_HEADER, "")
        file = names.parse_path(stated, self.size)
        if file is None:
            raise CorruptSnapshotError(f"{name} sent no snapshot: {self.size} bytes named {stated[:_MAX_SHOWN]!r}")
        self.file = file
        self._response = response

    def read_into(self, into: memoryview) -> int:
        """Read at least one byte, at most as many as fit; 0 at the end."""
        try:
            return self._response.readinto(into)
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnavailableError(f"{self.name} broke off: {_reason(error)}") from None


class _Connection(http.client.HTTPConnection):
    """A connection to one address of a host, whose certificate is checked against the host's name."""

    def __init__(self, peer: Peer, host: str, timeout_seconds: float, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, peer.address[1], timeout=timeout_seconds)
        self._peer, self._tls = peer, tls

    def connect(self) -> None:
        """Connect to the address, not to any of the host."""
        self.sock = socket.create_connection(self._peer.address[:2], self.timeout)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


def _answer(connection: http.client.HTTPConnection, progress: Progress) -> http.client.HTTPResponse:
    """The head of the answer. It comes when the peer has copied its rows; meanwhile the caller hears of progress, which
    may end this.
    """
    with ThreadPoolExecutor(1, "quorin-peer") as threads:
        answer = threads.submit(connection.getresponse)
        try:
            while not wait([answer], timeout=_LOOK_SECONDS).done:
                progress(0, 1)
        except BaseException:
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)  # Which ends the thread's wait.
            raise
        return answer.result()


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConnectionFailedError(f"token file {str(path)!r}: {error}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise ConnectionFailedError(f"token file {str(path)!r}: expected a token of printable ASCII")
    return token


def _detail(body: bytes) -> str:
    """The reason in an answer in JSON, or its text."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body.decode(errors="backslashreplace")
    return str(answer.get("detail", answer)) if isinstance(answer, dict) else str(answer)


def _reason(error: Exception) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


def _wait(seconds: float, progress: Progress) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        progress(0, 1)
        time.sleep(min(left, _LOOK_SECONDS))
