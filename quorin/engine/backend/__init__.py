"""The control plane and the log behind one small interface: Redis in production, one SQLite file by default."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from quorin.engine.backend.keys import DEFAULT_NAMESPACE, check_namespace
from quorin.engine.backend.protocols import Backend, Bounds, ControlPlane, DeadLetter, Log, ReadResult, Tail
from quorin.engine.paths import absolute
from quorin.errors import ConnectionFailedError
from quorin.urls import REDIS_FORM, shown

if TYPE_CHECKING:
    from pathlib import Path

    import redis

__all__ = [
    "Backend", "Bounds", "Connection", "ControlPlane", "DeadLetter", "Log", "ReadResult", "Tail", "connect",
    "embedded_directory",
]  # fmt: skip

if TYPE_CHECKING:
    Connection = redis.Redis | str | os.PathLike[str] | Backend

_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_NEARLY_A_URL = re.compile(r"(?si:rediss?:|unix:|[^/]*:.*@)")


def connect(connection: Connection, *, namespace: str = DEFAULT_NAMESPACE) -> Backend:
    """Connect to a control plane: a ``redis.Redis``, a Redis URL, or a directory for the embedded one.

    A directory is created, for its owner alone, if its parent exists; a relative one is made absolute, so that the
    connection keeps it when the process changes its directory. A client's settings are kept, but connections are
    Quorin's own. Anything that already is a backend is given back as it is.

    :raises ConnectionFailedError: if the connection is none of these, or what it names cannot be reached or used. The
        text names the address, never a password.
    """
    check_namespace(namespace)
    if _is_backend(connection):
        return connection  # type: ignore[return-value]
    if isinstance(connection, (str, os.PathLike)):
        directory = embedded_directory(connection)
        if directory is None:
            from quorin.engine.backend.redis import RedisBackend

            return RedisBackend.from_url(os.fspath(connection), namespace)
        from quorin.engine.backend.sqlite import EmbeddedBackend

        return EmbeddedBackend(directory, namespace)
    if any(base.__module__.partition(".")[0] == "redis" for base in type(connection).__mro__):
        from quorin.engine.backend.redis import RedisBackend

        return RedisBackend.from_client(connection, namespace)
    raise ConnectionFailedError(
        f"expected a redis.Redis, a URL ({', '.join(_REDIS_SCHEMES)}) or a directory, got {type(connection).__name__}"
    )


def embedded_directory(connection: str | os.PathLike[str]) -> Path | None:
    """The absolute directory that a connection names, whether or not it is there; None for a Redis URL.

    :raises ConnectionFailedError: if it names neither.
    """
    text = os.fspath(connection)
    if isinstance(text, str) and text.startswith(_REDIS_SCHEMES):
        return None
    _refuse_what_is_no_path(text)
    return absolute(text)


def _is_backend(connection: Any) -> bool:
    return all(hasattr(connection, name) for name in ("address", "control", "log", "close"))


def _refuse_what_is_no_path(text: str | bytes) -> None:
    """Nothing is quoted that may be a URL with a password."""
    if not isinstance(text, str):
        raise ConnectionFailedError(f"expected a directory's path as text, got {type(text).__name__}")
    if not text or "\0" in text:
        raise ConnectionFailedError("expected a directory's path as text, without null characters and not empty")
    if "://" in text:
        scheme = shown(text).partition("://")[0]
        raise ConnectionFailedError(f"URL scheme {scheme!r} is not known, expected one of {', '.join(_REDIS_SCHEMES)}")
    if re.fullmatch(r"[\w.-]+:\d+", text):
        raise ConnectionFailedError(
            f"{text!r} looks like a host and port: write 'redis://{text}', or './{text}' for a directory"
        )
    if _NEARLY_A_URL.match(text):
        raise ConnectionFailedError(f"expected {REDIS_FORM}; a directory of such a name is './…'")
