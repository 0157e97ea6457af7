"""From what a user passes as a connection to a backend: a Redis client, a Redis URL, or a directory."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from quorin.engine.backend.keys import DEFAULT_NAMESPACE, check_namespace
from quorin.engine.paths import absolute
from quorin.engine.urls import REDIS_FORM, REDIS_SCHEMES, shown
from quorin.errors import ConnectionFailedError, needs_extra

if TYPE_CHECKING:
    from pathlib import Path

    import redis

    from quorin.engine.backend.protocols import Backend
    from quorin.engine.backend.redis import RedisBackend

    Connection = redis.Redis | redis.RedisCluster | str | os.PathLike[str] | Backend

_NEARLY_A_URL = re.compile(r"(?si:rediss?(?:\+sentinel)?:|unix:|[^/]*:.*@)")


def connect(
    connection: Connection,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    must_answer: bool = True,
    partitions: int | None = None,
) -> Backend:
    """Connect to a control plane: a ``redis.Redis`` or ``redis.RedisCluster``, a Redis URL, or a directory for the
    embedded one.

    A directory is created, with access for its owner alone, if its parent exists. A relative path is made absolute, so
    that the connection keeps its directory when the process changes its own. A client's settings are copied; the
    connections are Quorin's own. A backend is returned as it is. Without ``must_answer`` a server is not contacted yet.

    ``partitions``, or ``?partitions=16`` in a Redis URL, is the number of partitions: that of a new deployment, and
    what any other must have, which is checked when it is first needed. None takes what the deployment has, and 1 if it
    is new.

    :raises PartitionCountError: for a number that is no power of two from 1 to 256, or not the one that a URL has.
    :raises ConnectionFailedError: if the connection is none of these, or cannot be reached or used. The text names the
        address, never a password.
    :raises MissingExtraError: for a Redis URL without the extra ``redis``.
    """
    backend = _backend(connection, namespace, must_answer=must_answer)
    backend.expect_partitions(partitions)
    return backend


def _backend(connection: Connection, namespace: str, *, must_answer: bool) -> Backend:
    check_namespace(namespace)
    if _is_backend(connection):
        return connection  # type: ignore[return-value]
    if isinstance(connection, (str, os.PathLike)):
        directory = embedded_directory(connection)
        if directory is None:
            return _redis_backend().from_url(os.fspath(connection), namespace, must_answer=must_answer)
        from quorin.engine.backend.sqlite import EmbeddedBackend

        return EmbeddedBackend(directory, namespace)
    if any(base.__module__.partition(".")[0] == "redis" for base in type(connection).__mro__):
        return _redis_backend().from_client(connection, namespace, must_answer=must_answer)
    raise ConnectionFailedError(
        f"expected a redis.Redis, a redis.RedisCluster, a URL ({', '.join(REDIS_SCHEMES)}) or a directory, "
        f"got {type(connection).__name__}"
    )


def embedded_directory(connection: str | os.PathLike[str]) -> Path | None:
    """The absolute directory that a connection names, whether or not it exists; None for a Redis URL.

    :raises ConnectionFailedError: if the connection is neither.
    """
    text = os.fspath(connection)
    if isinstance(text, str) and text.startswith(REDIS_SCHEMES):
        return None
    _check_path(text)
    return absolute(text)


def _redis_backend() -> type[RedisBackend]:
    with needs_extra("redis"):
        from quorin.engine.backend.redis import RedisBackend
    return RedisBackend


def _is_backend(connection: Any) -> bool:
    return all(hasattr(connection, name) for name in ("address", "control", "log", "close"))


def _check_path(text: str | bytes) -> None:
    """:raises ConnectionFailedError: unless it is a path. Text that may be a URL with a password is not quoted."""
    if not isinstance(text, str):
        raise ConnectionFailedError(f"expected a directory's path as text, got {type(text).__name__}")
    if not text or "\0" in text:
        raise ConnectionFailedError("expected a directory's path as text, without null characters and not empty")
    if "://" in text:
        scheme = shown(text).partition("://")[0]
        raise ConnectionFailedError(f"URL scheme {scheme!r} is not known, expected one of {', '.join(REDIS_SCHEMES)}")
    if re.fullmatch(r"[\w.-]+:\d+", text):
        raise ConnectionFailedError(
            f"{text!r} looks like a host and port: write 'redis://{text}', or './{text}' for a directory"
        )
    if _NEARLY_A_URL.match(text):
        raise ConnectionFailedError(f"expected {REDIS_FORM}; a directory of such a name is './…'")
