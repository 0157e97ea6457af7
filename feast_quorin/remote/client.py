"""The connections of one process to ``quorin serve``."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import urllib3

from quorin.errors import ConnectionFailedError, QuorinError

if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_HEADERS: Mapping[str, str] = {}
_RETRIES = 3
_BACKOFF_SECONDS = 0.1
_UNAVAILABLE = (502, 503, 504)
_MAX_SHOWN = 2_000
_POOL_SIZE = 64
_OK = 200
_HINTS = {401: " (online_store: token_file)", 404: " (expected the URL of `quorin serve`)"}


class RemoteStoreError(QuorinError, RuntimeError):
    """``quorin serve`` refused a request: :attr:`status`, and :attr:`error`, the name of the error there if it is one
    of Quorin's; ``about`` is all that the answer says of it.
    """

    def __init__(self, message: str, status: int, about: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.about = about or {}

    @property
    def error(self) -> str | None:
        """The name of the error on the server."""
        return self.about.get("error")


class Answer(NamedTuple):
    """The body of an answer, and the token of what the request wrote, as text; None if nothing."""

    body: bytes
    token: str | None


class Client:
    """A pool of connections to one URL, ``http`` or ``https``. Threads may share it; a forked child must not.

    The file with the token is read once. ``timeout_seconds`` bounds the time to connect, and each wait for bytes.
    """

    def __init__(self, url: str, *, token_file: Path | None, tls_ca: Path | None, timeout_seconds: float) -> None:
        self.pid, self.url = os.getpid(), url.rstrip("/")
        parts = urlsplit(self.url)
        self._prefix = parts.path
        self._headers = {} if token_file is None else {"Authorization": f"Bearer {read_token(token_file)}"}
        options = {"maxsize": _POOL_SIZE, "timeout": urllib3.Timeout(timeout_seconds)}
        if parts.scheme == "https":
            options["ssl_context"] = _tls(tls_ca)
        self._pool = urllib3.connection_from_url(f"{parts.scheme}://{parts.netloc}", **options)
        self._timeout_seconds = timeout_seconds

    def post(
        self, path: str, body: bytes, content_type: str, *, is_idempotent: bool, more: Mapping[str, str] = _NO_HEADERS
    ) -> Answer:
        """The answer to a request with ``more`` headers.

        An idempotent request is sent again, up to three times and ever later, if the connection breaks or the server is
        not available; any other only if it did not reach the server.

        :raises ConnectionFailedError: if there is no answer, or not in time.
        :raises RemoteStoreError: for an answer with another status than 200.
        """
        sent = {**self._headers, "Content-Type": content_type, "Accept": content_type, **more}
        retries = _AGAIN if is_idempotent else _UNSENT_AGAIN
        try:
            response = self._pool.urlopen(
                "POST", self._prefix + path, body=body, headers=sent, retries=retries, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            self._raise_failed(path, error, is_idempotent=is_idempotent)
        if response.status != _OK:
            self._raise_refused(path, response.status, response.data)
        found = response.headers.get("content-type", "")
        if not found.startswith(content_type):
            raise RemoteStoreError(f"POST {self.url}{path}: expected {content_type}, got {found!r}", response.status)
        return Answer(response.data, response.headers.get("quorin-token"))

    def _raise_failed(self, path: str, error: Exception, *, is_idempotent: bool) -> NoReturn:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, urllib3.exceptions.TimeoutError):
            text = f"no answer within {self._timeout_seconds:g} s"
        else:
            text = _without_addresses(reason)
        is_open = not is_idempotent and not isinstance(reason, urllib3.exceptions.NewConnectionError)
        more = ". Whether the rows were written is not known: writing them again is safe" if is_open else ""
        raise ConnectionFailedError(f"POST {self.url}{path}: {text}{more}") from None

    def _raise_refused(self, path: str, status: int, body: bytes) -> NoReturn:
        try:
            answer = json.loads(body)
        except ValueError:
            answer = body[:_MAX_SHOWN].decode(errors="replace")
        known = answer if isinstance(answer, dict) else {"detail": answer}
        detail = str(known.get("detail", known))[:_MAX_SHOWN]
        raise RemoteStoreError(f"POST {self.url}{path}: {status}: {detail}{_HINTS.get(status, '')}", status, known)


def _without_addresses(reason: object) -> str:
    """The reason without the names of urllib3's objects."""
    return str(reason).rpartition(">: ")[2] or type(reason).__name__


def _tls(tls_ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConnectionFailedError(f"tls_ca {str(tls_ca)!r}: expected certificates in PEM: {error}") from None


def read_token(path: Path) -> str:
    """The token in a file. :raises ConnectionFailedError: if it cannot be read, or has none."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConnectionFailedError(f"token_file {str(path)!r}: {error}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise ConnectionFailedError(f"token_file {str(path)!r}: expected a token of printable ASCII")
    return token


_AGAIN = urllib3.Retry(
    total=_RETRIES,
    redirect=0,
    allowed_methods=None,
    status_forcelist=_UNAVAILABLE,
    backoff_factor=_BACKOFF_SECONDS,
    backoff_jitter=_BACKOFF_SECONDS,
    raise_on_status=False,
)
_UNSENT_AGAIN = _AGAIN.new(total=None, connect=_RETRIES, read=0, status=0, other=0)
