"""Connections to a Redis server: one per thread, new ones after a fork. Calls are retried, and errors translated.

A call is one write to a socket and one read, a fifth of the cost of redis-py's client and pool.

After a failover, another server behind the same address (a proxy, a DNS name, Sentinel's) may be the master, while
connections to the former one stay open. A call that the former master refuses is retried on a new connection, and all
threads reconnect at their next call.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import weakref
from functools import lru_cache
from typing import Any

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from quorin.engine.paths import absolute
from quorin.engine.urls import without_secrets
from quorin.errors import ConnectionFailedError, LogFullError

_DEFAULTS: dict[str, Any] = {"socket_connect_timeout": 2.0, "socket_timeout": 5.0}
_RETRIES, _RETRY_PAUSE_SECONDS, _MAX_RETRY_PAUSE_SECONDS = 2, 0.02, 0.5
_OF_POOLS = ("max_connections", "timeout")
_PATHS = ("path", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_FAILED_OVER = redis.exceptions.ReadOnlyError, redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError
"""Errors of a server that was demoted, or has no link to its master (``MASTERDOWN`` is a ``ClusterDownError``). While a
server loads its data, redis-py raises a ``ConnectionError``."""
_FAILED_OVER_TEXT = re.compile(r"^UNBLOCKED |-(?:READONLY|LOADING|MASTERDOWN|CLUSTERDOWN) ")
"""Errors without a type in redis-py, including those that a script's error quotes."""

_NEEDS_PROTOCOL_3 = ("maint_notifications", "oss_cluster_maint", "event_dispatcher", "cache")


class FailedOverError(redis.exceptions.ConnectionError):
    """The server refused a call, without effect, because it is not the master now."""


class RedisServer:
    """One connection per thread, retried calls, translated errors, and new connections after a fork."""

    def __init__(self, connection_class: Any, settings: dict[str, Any]) -> None:
        self._connection_class = connection_class
        self._settings = _complete(settings)
        self._secrets = [str(self._settings[name]) for name in ("password",) if self._settings.get(name)]
        self._forget_connections()
        self._retry: Any = Retry(
            ExponentialBackoff(cap=_MAX_RETRY_PAUSE_SECONDS, base=_RETRY_PAUSE_SECONDS),
            _RETRIES,
            (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError),
        )
        self._closed = False
        self.address = _address_of(connection_class, self._settings)
        self.longest_block_ms = int(self._settings["socket_timeout"] * 500)

    def __reduce__(self) -> tuple[type[RedisServer], tuple[Any, dict[str, Any]]]:
        return RedisServer, (self._connection_class, self._settings)

    def run(self, script: str, keys_: list[str], arguments: list[Any]) -> Any:
        """Run a Lua script by its digest; the script itself is sent if the server does not know it."""
        try:
            return self._repeat(self._packed("EVALSHA", _digest(script), len(keys_), *keys_, *arguments))
        except redis.exceptions.NoScriptError:
            return self.call("EVAL", script, len(keys_), *keys_, *arguments)
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None

    def call(self, *words: Any) -> Any:
        """The answer to a command, in the form of protocol 2.

        :raises ConnectionFailedError: for Redis' errors; ``LogFullError`` when its memory is out.
        """
        return self.call_packed(self._packed(*words))

    def call_packed(self, command: bytes | list[bytes]) -> Any:
        """:meth:`call` for a command in Redis' protocol."""
        try:
            return self._repeat(command)
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None

    def call_together(self, *commands: bytes) -> list[Any]:
        """The answers to several commands that are sent together; a Redis error takes the place of its answer.

        :raises ConnectionFailedError: if the server cannot be reached.
        """
        try:
            answers: list[Any] = self._repeat(b"".join(commands), len(commands))
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None
        return [self._translated(answer) if isinstance(answer, Exception) else answer for answer in answers]

    def ping_once(self) -> None:
        """Check that the server can be used, without retries."""
        try:
            self._exchange(self._connection(), self._packed("PING"))
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None

    def close(self) -> None:
        """Close the connections of all threads of this process."""
        if self._pid != os.getpid():
            self._forget_connections()
        self._closed = True
        for connection in list(self._open):
            connection.disconnect()

    def _packed(self, *words: Any) -> list[bytes]:
        packed: list[bytes] = self._connection().pack_command(*words)
        return packed

    def _repeat(self, command: bytes | list[bytes], answers: int | None = None) -> Any:
        """Exchange, and retry if the connection breaks or the server is no longer the master. With ``answers``, returns
        a list of that many answers.
        """
        return self._retry.call_with_retry(
            lambda: self._exchange(self._connection(), command, answers), self._prepare_next_try
        )

    def _prepare_next_try(self, error: Exception) -> None:
        if self._closed or isinstance(error, redis.exceptions.AuthenticationError):
            raise error

    def _exchange(self, connection: Any, command: bytes | list[bytes], answers: int | None = None) -> Any:
        try:
            connection.send_packed_command([command] if isinstance(command, bytes) else command)
            if answers is None:
                return connection.read_response()
            read = [_answer(connection) for _ in range(answers)]
            for answer in read:
                if isinstance(answer, redis.exceptions.ResponseError):
                    self._leave_failed_over(connection, answer)
            return read
        except redis.exceptions.ResponseError as error:
            self._leave_failed_over(connection, error)
            raise
        except BaseException:
            # The answer may still arrive, and the next call would read it as its own.
            connection.disconnect()
            raise

    def _leave_failed_over(self, connection: Any, error: redis.exceptions.ResponseError) -> None:
        """Let all threads reconnect if the server is not the master.

        :raises FailedOverError: if it is not.
        """
        if isinstance(error, _FAILED_OVER) or _FAILED_OVER_TEXT.search(str(error)):
            self._forget_connections()
            connection.disconnect()
            raise FailedOverError(str(error)) from None

    def _connection(self) -> Any:
        if self._closed:
            raise ConnectionFailedError(f"the connection to {self.address} is closed")
        if self._pid != os.getpid():
            self._forget_connections()
        connection = getattr(self._of_thread, "connection", None)
        if connection is None:
            try:
                connection = self._of_thread.connection = self._connection_class(**self._settings)
            except TypeError as error:
                raise ConnectionFailedError(f"a setting for Redis at {self.address} is not known: {error}") from None
            self._open.add(connection)
        return connection

    def _forget_connections(self) -> None:
        """Start without connections. Dropped connections of a parent process close without affecting it."""
        self._pid = os.getpid()
        self._of_thread = threading.local()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()

    def _translated(self, error: Exception) -> Exception:
        # A server that does not know AUTH quotes its arguments.
        reason = without_secrets(str(error).partition(", with args beginning with")[0], self._secrets)
        if isinstance(error, redis.exceptions.OutOfMemoryError) or "-OOM " in reason:
            return LogFullError(f"Redis at {self.address} is at its maxmemory: {reason}")
        return ConnectionFailedError(f"Redis at {self.address} cannot be used: {reason}")


def pairs(answer: list[bytes]) -> dict[bytes, bytes]:
    """An answer of names and values in turn, as a dictionary."""
    return dict(zip(answer[::2], answer[1::2], strict=True))


def texts(answer: list[bytes]) -> dict[str, str]:
    """The same, decoded."""
    return {name.decode(): text.decode() for name, text in pairs(answer).items()}


def _answer(connection: Any) -> Any:
    """The next answer, or the error if the server refused the command."""
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings for answers as bytes in protocol 2, with timeouts, and with no retries besides those made here."""
    settings = {
        name: str(absolute(value)) if name in _PATHS and value else value
        for name, value in settings.items()
        if name not in _OF_POOLS and not name.startswith(_NEEDS_PROTOCOL_3)
    }
    for name, value in _DEFAULTS.items():
        if settings.get(name) is None:
            settings[name] = value
    return settings | {
        "protocol": 2,
        "decode_responses": False,
        "encoding": "utf-8",
        "retry": Retry(NoBackoff(), 0),
    }


@lru_cache(maxsize=32)
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _address_of(connection_class: Any, settings: dict[str, Any]) -> str:
    if settings.get("path"):
        return f"unix://{settings['path']}?db={settings.get('db') or 0}"
    scheme = "rediss" if issubclass(connection_class, redis.SSLConnection) else "redis"
    return f"{scheme}://{settings.get('host', 'localhost')}:{settings.get('port', 6379)}/{settings.get('db') or 0}"
