"""Connections to a Redis server: one per thread, new ones after a fork. Calls are retried, and errors translated.

A call is one write to a socket and one read, a fifth of the cost of redis-py's client and pool.

After a failover, another server may be the master, behind the same address (a proxy, a DNS name) or at another one
(:mod:`quorin.engine.backend.redis_routes`), while connections to the former one stay open. A call that the former
master refuses is retried on a new connection, and all threads reconnect at their next call.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from quorin.engine.urls import without_secrets
from quorin.errors import ConnectionFailedError, LogClosedError, LogFullError, PartitionCountError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quorin.engine.backend.redis_routes import Endpoint, Route

_RETRY_PAUSE_SECONDS, _MAX_RETRY_PAUSE_SECONDS = 0.02, 0.5
_FAILED_OVER = redis.exceptions.ReadOnlyError, redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError
"""Errors of a server that was demoted, or has no link to its master (``MASTERDOWN`` is a ``ClusterDownError``). While a
server loads its data, redis-py raises a ``ConnectionError``."""
_FAILED_OVER_TEXT = re.compile(r"^UNBLOCKED |(?:^|-)(?:READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN) ")
"""Errors without a type in some versions of redis-py, including those that a script's error quotes."""
_SEVERAL_PARTITIONS = re.compile(r"\bPARTITIONS ([0-9]+) ")
"""What a script says instead of creating the only log of a deployment that has several."""
_ELSEWHERE = re.compile(r"(?:(MOVED|ASK) )?([0-9]+) (\S*):([0-9]+)")
_ASKING = b"*1\r\n$6\r\nASKING\r\n"

Command = bytes | list[bytes] | tuple[bytes, ...]
"""In Redis' protocol: whole, in pieces, or several that are sent together."""


class FailedOverError(redis.exceptions.ConnectionError):
    """The server refused a call, without effect, because it is not the master now."""


class _AskError(Exception):
    """A key is at another server while its slot is being moved there; the slot is still here."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.endpoint = endpoint


class RedisServer:
    """One connection per thread, retried calls, translated errors, and new connections after a fork."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._forget_connections()
        self._retry: Any = Retry(
            ExponentialBackoff(cap=_MAX_RETRY_PAUSE_SECONDS, base=_RETRY_PAUSE_SECONDS),
            route.retries,
            (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError),
        )
        self._closed = False
        connection_class: Any = redis.Connection
        self._packer = connection_class()
        self.address = route.address
        self.longest_block_ms = int(route.settings.values["socket_timeout"] * 500)

    def __reduce__(self) -> tuple[type[RedisServer], tuple[Route]]:
        return RedisServer, (self._route,)

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
            answers: list[Any] = self._repeat(commands)
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None
        return [self._translated(answer) if isinstance(answer, Exception) else answer for answer in answers]

    def start(self, commands: Iterable[bytes]) -> Any:
        """Send commands in Redis' protocol, without waiting for answers. Returns what :meth:`finish` reads them from;
        this thread must do that, or call :meth:`abandon`, before it makes another call. Nothing is tried again.

        :raises ConnectionFailedError: if the server cannot be reached.
        """
        try:
            connection = self._connection()
            try:
                connection.send_packed_command(commands)
            except BaseException:
                self.abandon(connection)
                raise
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None
        return connection

    def finish(self, connection: Any, count: int) -> list[Any]:
        """The answers to so many commands; where the server refused a command, its error.

        :raises ConnectionFailedError: if the connection broke.
        """
        try:
            try:
                answers = [_answer(connection, False) for _ in range(count)]
            except BaseException:
                self.abandon(connection)
                raise
            for answer in answers:
                if isinstance(answer, redis.exceptions.ResponseError):
                    self._leave_if_refused(connection, answer, raises=False)
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None
        return [self._translated(answer) if isinstance(answer, Exception) else answer for answer in answers]

    def abandon(self, connection: Any) -> None:
        """End a connection whose answers may still arrive: the next call would read them as its own."""
        self._drop(connection)
        self._route.lost()

    @property
    def purposes(self) -> set[str]:
        """What the thread's connection was used for, as its users note it; empty when it is a new one, which may be to
        another server.
        """
        used: set[str] = self._of_thread.__dict__.setdefault("purposes", set())
        return used

    def ping_once(self) -> None:
        """Check that the server can be used, without retries."""
        try:
            self._attempt(self._packed("PING"))
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
        packed: list[bytes] = self._packer.pack_command(*words)
        return packed

    def _repeat(self, command: Command) -> Any:
        """The answer; of several commands, a list. Tried again if the connection breaks or the server is no longer the
        master.
        """
        return self._retry.call_with_retry(lambda: self._attempt(command), self._prepare_next_try)

    def _attempt(self, command: Command) -> Any:
        try:
            return self._exchange(self._connection(), command)
        except _AskError as error:
            return self._exchange(self._connection_to(error.endpoint), command, asking=True)

    def _prepare_next_try(self, error: Exception) -> None:
        if self._closed or isinstance(error, redis.exceptions.AuthenticationError):
            raise error

    def _exchange(self, connection: Any, command: Command, *, asking: bool = False) -> Any:
        try:
            if isinstance(command, tuple):
                connection.send_packed_command([(_ASKING if asking else b"").join((b"", *command))])
                answers = [_answer(connection, asking) for _ in command]
                for number, answer in enumerate(answers):
                    # After the first, the call is not repeated: what the first did, it would do again.
                    if isinstance(answer, redis.exceptions.ResponseError):
                        self._leave_if_refused(connection, answer, raises=number == 0)
                return answers
            pieces = [command] if isinstance(command, bytes) else command
            connection.send_packed_command([_ASKING, *pieces] if asking else pieces)
            if asking:
                connection.read_response()
            return connection.read_response()
        except redis.exceptions.ResponseError as error:
            self._leave_if_refused(connection, error)
            raise
        except (_AskError, FailedOverError):
            raise
        except BaseException:
            self.abandon(connection)
            raise

    def _leave_if_refused(self, connection: Any, error: Exception, *, raises: bool = True) -> None:
        """Let all threads reconnect if the server is not the master, or no longer the slot's.

        :raises FailedOverError: if it is not. :raises _AskError: if the key alone is elsewhere.
        """
        found = _ELSEWHERE.match(str(error))
        if found is not None and (found[1] or isinstance(error, redis.exceptions.AskError)):
            endpoint = (found[3].strip("[]") or getattr(connection, "host", "localhost"), int(found[4]))
            is_moved = found[1] == "MOVED" or isinstance(error, redis.exceptions.MovedError)
            if not is_moved:
                if raises:
                    raise _AskError(endpoint)
                return
            if not self._route.moved(endpoint):
                raise ConnectionFailedError(
                    f"Redis at {self.address} is a node of a cluster, and slot {found[2]} is at another node: connect "
                    "to the cluster, with ?cluster=true"
                )
        elif isinstance(error, redis.exceptions.TryAgainError) or str(error).startswith("TRYAGAIN "):
            if raises:  # Some keys of the call are here, others where the slot is being moved to.
                raise FailedOverError(str(error))
            return
        elif isinstance(error, _FAILED_OVER) or _FAILED_OVER_TEXT.search(str(error)):
            self._route.lost()
        else:
            return
        self._forget_connections()
        connection.disconnect()
        if raises:
            raise FailedOverError(str(error)) from None

    def _drop(self, connection: Any) -> None:
        """End a connection; the thread's next call makes another."""
        connection.disconnect()
        if getattr(self._of_thread, "connection", None) is connection:
            self._of_thread.__dict__.clear()

    def _connection_to(self, endpoint: Endpoint) -> Any:
        """A connection to a server that has some keys of a slot that is being moved to it."""
        kept = getattr(self._of_thread, "importing", None)
        if kept is None or kept[0] != endpoint:
            host, port = endpoint
            kept = endpoint, self._route.settings.open(self.address, host=host, port=port)
            self._of_thread.importing = kept
            self._open.add(kept[1])
        return kept[1]

    def _connection(self) -> Any:
        if self._closed:
            raise ConnectionFailedError(f"the connection to {self.address} is closed")
        if self._pid != os.getpid():
            self._forget_connections()
        connection = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._route.connect()
            self._of_thread.__dict__.clear()
            self._of_thread.connection = connection
            self._open.add(connection)
        return connection

    def _forget_connections(self) -> None:
        """Start without connections. Dropped connections of a parent process close without affecting it."""
        self._pid = os.getpid()
        self._of_thread = threading.local()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()

    def _translated(self, error: Exception) -> Exception:
        # A server that does not know AUTH quotes its arguments.
        reason = without_secrets(str(error).partition(", with args beginning with")[0], self._route.secrets)
        if (several := _SEVERAL_PARTITIONS.search(reason)) is not None:
            return PartitionCountError(
                f"the deployment at {self.address} has {several[1]} partitions, and no number of them was stored when "
                "this process asked: connect anew"
            )
        if isinstance(error, redis.exceptions.OutOfMemoryError) or "-OOM " in reason:
            return LogFullError(f"{self._route.kind} at {self.address} is at its maxmemory: {reason}")
        if "has exhausted the last possible ID" in reason:  # How an append to a closed log fails.
            return LogClosedError(f"{self._route.kind} at {self.address}: the log is closed; nothing was written")
        part = f"{self._route.part}: " if self._route.part else ""
        return ConnectionFailedError(f"{self._route.kind} at {self.address} cannot be used: {part}{reason}")


def pairs(answer: list[bytes]) -> dict[bytes, bytes]:
    """An answer of names and values in turn, as a dictionary."""
    return dict(zip(answer[::2], answer[1::2], strict=True))


def texts(answer: list[bytes]) -> dict[str, str]:
    """An answer of names and values in turn, as a dictionary of texts."""
    return {name.decode(): text.decode() for name, text in pairs(answer).items()}


def _answer(connection: Any, asking: bool) -> Any:
    """The next answer, or the error if the server refused the command."""
    try:
        if asking:
            connection.read_response()
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error


@lru_cache(maxsize=32)
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
