"""The control plane and the log on Redis 6.2 or newer: hashes, and a stream that only scripts write.

What survives a crash of the server is what its own persistence keeps; ``appendonly yes`` with ``appendfsync always``
loses nothing that was acknowledged. Calls are repeated twice, with back-off, when a connection breaks. An append whose
answer was lost may so be in the log twice, which applies once in effect.

Every thread keeps one connection of its own: a call is then one write to a socket and one read, which is a fifth of
what redis-py's client and pool take for it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from quorin import keys
from quorin.backend.protocols import Bounds, DeadLetter, ReadResult, trim_refused
from quorin.errors import ConnectionFailedError, LogFullError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_DEFAULTS: dict[str, Any] = {"socket_connect_timeout": 2.0, "socket_timeout": 5.0}
_RETRY_PAUSES_SECONDS = (0.04, 0.08)
_NEEDS_PROTOCOL_3 = ("maint_notifications", "oss_cluster_maint", "event_dispatcher", "cache")
_LARGEST_READ_COUNT = 4096
_FACTS = (
    "aof_enabled", "aof_last_write_status", "maxmemory", "maxmemory_policy", "used_memory", "redis_mode", "role",
    "connected_slaves", "uptime_in_seconds",
)  # fmt: skip


class RedisBackend:
    """Connections of its own to the server that a URL or a client names."""

    def __init__(self, connection_class: Any, settings: dict[str, Any], namespace: str) -> None:
        self._server = _Server(connection_class, settings)
        self._namespace = namespace
        self.address = self._server.address
        self.control = RedisControlPlane(self._server, namespace)
        self._server.ping_once()

    @classmethod
    def from_url(cls, url: str, namespace: str) -> RedisBackend:
        """Connect to ``redis://``, ``rediss://`` (TLS) or ``unix://``."""
        try:
            settings: dict[str, Any] = dict(redis.connection.parse_url(url))  # type: ignore[no-untyped-call]
        except ValueError as error:
            # The parser's text may hold parts of the URL, and the password may be one of them.
            reason = _without_secrets(str(error), _secrets_in(url))
            raise ConnectionFailedError(f"the Redis URL {_masked(url)} is wrong: {reason}") from None
        return cls(settings.pop("connection_class", redis.Connection), settings, namespace)

    @classmethod
    def from_client(cls, client: Any, namespace: str) -> RedisBackend:
        """Connect with the settings of a ``redis.Redis``; its own connections are left alone."""
        pool: Any = getattr(client, "connection_pool", None)
        if not isinstance(client, redis.Redis) or type(pool) not in (
            redis.ConnectionPool,
            redis.BlockingConnectionPool,
        ):
            kind = f"{type(client).__module__}.{type(client).__name__}"
            raise ConnectionFailedError(f"expected a redis.Redis with a plain connection pool, got {kind}")
        return cls(pool.connection_class, dict(pool.connection_kwargs), namespace)

    def log(self, stream_key: str = keys.DEFAULT_STREAM_KEY) -> RedisLog:
        """The log of that name."""
        return RedisLog(self._server, self._namespace, stream_key)

    def facts(self) -> dict[str, str]:
        """What ``INFO`` says of version, persistence, memory and clock; ``appendfsync`` where the user may ask."""
        lines = self._server.call("INFO").decode().splitlines()
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        seconds, microseconds = self._server.call("TIME")
        facts = {name: info[name] for name in _FACTS if name in info}
        facts |= {"kind": "redis", "version": info["redis_version"], "time": f"{int(seconds)}.{int(microseconds):06}"}
        try:
            facts["appendfsync"] = self._server.call("CONFIG", "GET", "appendfsync")[1].decode()
        except ConnectionFailedError:  # Only an administrator may ask.
            facts["appendfsync"] = "unknown"
        return facts

    def close(self) -> None:
        """Close the connections."""
        self._server.close()


class RedisControlPlane:
    """Three hashes of one namespace, and its identity."""

    def __init__(self, server: _Server, namespace: str) -> None:
        self._server = server
        self._current = keys.current_key(namespace)
        self._schemas = keys.schemas_key(namespace)
        self._processes = keys.processes_key(namespace)
        self._identity = keys.identity_key(namespace)

    def current(self, schema_name: str) -> str | None:
        """The name of the current segment, or None."""
        name = self._server.call("HGET", self._current, schema_name)
        return None if name is None else str(name.decode())

    def set_current(self, schema_name: str, segment_name: str, *, expected: str | None) -> bool:
        """Compare and set."""
        return bool(self._server.run(keys.LUA_SWAP, [self._current], [schema_name, expected or "", segment_name]))

    def clear_current(self, schema_name: str, *, expected: str) -> bool:
        """Compare and delete."""
        return bool(self._server.run(keys.LUA_SWAP, [self._current], [schema_name, expected, ""]))

    def currents(self) -> dict[str, str]:
        """The names of all current segments, by schema name."""
        return _texts(self._server.call("HGETALL", self._current))

    def identity(self) -> int:
        """The number that was drawn when it was first asked for."""
        self._server.call("SET", self._identity, _fresh_identity(), "NX")
        return int(self._server.call("GET", self._identity))

    def put_schema(self, schema_name: str, json: str) -> None:
        """Keep a schema's JSON."""
        self._server.call("HSET", self._schemas, schema_name, json)

    def swap_schema(self, schema_name: str, json: str, *, expected: str | None) -> bool:
        """Compare and set."""
        return bool(self._server.run(keys.LUA_SWAP, [self._schemas], [schema_name, expected or "", json]))

    def schemas(self) -> dict[str, str]:
        """The schemas' JSON by name."""
        return _texts(self._server.call("HGETALL", self._schemas))

    def drop_schema(self, schema_name: str) -> bool:
        """Forget a schema's JSON."""
        return bool(self._server.call("HDEL", self._schemas, schema_name))

    def announce(self, process: str, report: str) -> None:
        """Keep what a process says of itself."""
        self._server.call("HSET", self._processes, process, report)

    def processes(self) -> dict[str, str]:
        """The reports by process."""
        return _texts(self._server.call("HGETALL", self._processes))

    def withdraw(self, process: str) -> bool:
        """Forget a process."""
        return bool(self._server.call("HDEL", self._processes, process))


class RedisLog:
    """One stream, its identity and its dead letters."""

    def __init__(self, server: _Server, namespace: str, stream_key: str) -> None:
        self._server = server
        self._keys = keys.log_keys(namespace, stream_key)
        self._made_together = [self._keys.stream, self._keys.identity, self._keys.trimmed]
        self._entry_bytes = 1 << 20
        self.stream_key = stream_key

    def identity(self) -> int:
        """The number that was drawn when the stream was made."""
        return int(self._server.run(keys.LUA_IDENTITY, self._made_together, [_fresh_identity()]))

    def append(self, entries: Sequence[tuple[str, bytes]], *, max_entries: int | None = None) -> list[int]:
        """Append in one script."""
        arguments: list[Any] = [_fresh_identity(), -1 if max_entries is None else max_entries]
        for entry in entries:
            arguments += entry
        ids = self._server.run(keys.LUA_APPEND, self._made_together, arguments)
        if isinstance(ids, int):
            raise LogFullError(
                f"log {self.stream_key!r} at {self._server.address} has {ids} entries, the limit is {max_entries}: "
                f"{len(entries)} more do not fit until a consumer has applied and trimmed some"
            )
        return [keys.position_of(stream_id) for stream_id in ids]

    def read(
        self,
        after: int,
        *,
        schema_names: Collection[str] | None = None,
        max_entries: int = 1024,
        max_bytes: int = 16 << 20,
        block_ms: int = 0,
    ) -> ReadResult:
        """Read the stream; other schemas' entries are fetched and left out.

        Redis counts entries, not bytes, so the number asked for follows the largest entry of the last read.
        """
        count = max(1, min(max_entries, max_bytes // self._entry_bytes, _LARGEST_READ_COUNT))
        block = min(block_ms, self._server.longest_block_ms)
        waiting = ("BLOCK", block) if block > 0 else ()
        answer = self._server.call(
            "XREAD", "COUNT", count, *waiting, "STREAMS", self._keys.stream, keys.stream_id_of(after)
        )
        if not answer:
            return ReadResult([], after)
        found = [(keys.position_of(stream_id), _pairs(fields)) for stream_id, fields in answer[0][1]]
        self._entry_bytes = max(1024, *(len(fields.get(keys.FIELD_PAYLOAD, b"")) for _, fields in found))
        wanted = None if schema_names is None else {name.encode() for name in schema_names}
        entries = [
            (position, fields.get(keys.FIELD_PAYLOAD, b""))
            for position, fields in found
            if wanted is None or fields.get(keys.FIELD_SCHEMA) in wanted
        ]
        return ReadResult(entries, found[-1][0])

    def bounds(self) -> Bounds:
        """The first entry's position and the last one that was given."""
        first, last, trimmed = self._server.run(keys.LUA_BOUNDS, [self._keys.stream, self._keys.trimmed], [])
        return Bounds(keys.position_of(first), keys.position_of(last), int(trimmed))

    def state(self) -> tuple[int, Bounds]:
        """Both in one script."""
        first, last, trimmed, identity = self._server.run(keys.LUA_STATE, self._made_together, [_fresh_identity()])
        return int(identity), Bounds(keys.position_of(first), keys.position_of(last), int(trimmed))

    def sizes(self) -> tuple[int, int]:
        """The lengths of the stream and of the hash of dead letters."""
        return int(self._server.call("XLEN", self._keys.stream)), int(self._server.call("HLEN", self._keys.dead))

    def claim(self, schema_names: Collection[str], consumer: str) -> None:
        """Set the schemas' trimmer."""
        self._server.call("HSET", self._keys.trimmers, *(word for name in schema_names for word in (name, consumer)))

    def trim(self, through: int, *, claims: Mapping[str, str] | None = None) -> int:
        """Trim the stream exactly; it stays, with its last id, when nothing is left in it."""
        through = min(through, self.bounds().last)
        arguments: list[Any] = [keys.stream_id_of(through + 1), through]
        for claim in (claims or {}).items():
            arguments += claim
        gone = self._server.run(keys.LUA_TRIM, [self._keys.stream, self._keys.trimmed, self._keys.trimmers], arguments)
        if isinstance(gone, bytes):
            raise trim_refused(gone.decode(), self.stream_key, self._server.address)
        return int(gone)

    def bury(self, position: int, payload: bytes, reason: str, *, max_letters: int = keys.MAX_DEAD_LETTERS) -> int:
        """Keep a dead letter."""
        arguments = [position, payload, reason, max_letters]
        return int(self._server.run(keys.LUA_BURY, [self._keys.dead, self._keys.dead_reasons], arguments))

    def dead_letters(self) -> list[DeadLetter]:
        """The dead letters by position."""
        payloads = _pairs(self._server.call("HGETALL", self._keys.dead))
        reasons = _texts(self._server.call("HGETALL", self._keys.dead_reasons))
        letters = [DeadLetter(int(key), payload, reasons.get(key.decode(), "")) for key, payload in payloads.items()]
        return sorted(letters, key=lambda letter: letter.position)

    def remove_dead_letter(self, position: int) -> bool:
        """Forget a dead letter."""
        self._server.call("HDEL", self._keys.dead_reasons, position)
        return bool(self._server.call("HDEL", self._keys.dead, position))


class _Server:
    """One connection a thread, repeated calls, errors translated, and everything made anew after a fork."""

    def __init__(self, connection_class: Any, settings: dict[str, Any]) -> None:
        self._connection_class = connection_class
        self._settings = _complete(settings)
        self._secrets = [str(self._settings[name]) for name in ("password",) if self._settings.get(name)]
        self._forget_connections()
        self._closed = False
        self.address = _address_of(connection_class, self._settings)
        self.longest_block_ms = int(self._settings["socket_timeout"] * 500)

    def run(self, script: str, keys_: list[str], arguments: list[Any]) -> Any:
        """Run a Lua script by its digest; the server gets its text when it does not know it."""
        try:
            return self._repeat(("EVALSHA", _digest(script), len(keys_), *keys_, *arguments))
        except redis.exceptions.NoScriptError:
            return self.call("EVAL", script, len(keys_), *keys_, *arguments)
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None

    def call(self, *words: Any) -> Any:
        """The answer to a command, in the form of protocol 2.

        :raises ConnectionFailedError: for Redis' errors; ``LogFullError`` when its memory is out.
        """
        try:
            return self._repeat(words)
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None

    def ping_once(self) -> None:
        """Find out at once whether the server can be used, without repeating."""
        try:
            self._exchange(self._connection(), ("PING",))
        except TypeError as error:
            raise ConnectionFailedError(f"a setting for Redis at {self.address} is not known: {error}") from None
        except redis.exceptions.RedisError as error:
            raise self._translated(error) from None

    def close(self) -> None:
        """Close the connections of all threads of this process."""
        if self._pid != os.getpid():
            self._forget_connections()
        self._closed = True
        for connection in list(self._open):
            connection.disconnect()

    def _repeat(self, words: tuple[Any, ...]) -> Any:
        connection = self._connection()
        for pause in _RETRY_PAUSES_SECONDS:
            try:
                return self._exchange(connection, words)
            except redis.exceptions.AuthenticationError:
                raise
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                if self._closed:
                    raise
                time.sleep(pause)
        return self._exchange(connection, words)

    def _exchange(self, connection: Any, words: tuple[Any, ...]) -> Any:
        try:
            connection.send_command(*words)
            return connection.read_response()
        except redis.exceptions.ResponseError:
            raise
        except BaseException:
            # An answer may still be on its way, which the next call would take for its own.
            connection.disconnect()
            raise

    def _connection(self) -> Any:
        if self._closed:
            raise ConnectionFailedError(f"the connection to {self.address} is closed")
        if self._pid != os.getpid():
            self._forget_connections()
        connection = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = self._connection_class(**self._settings)
            self._open.add(connection)
        return connection

    def _forget_connections(self) -> None:
        """Begin with none; those of a parent process close without harm to it when they are dropped."""
        self._pid = os.getpid()
        self._of_thread = threading.local()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()

    def _translated(self, error: Exception) -> Exception:
        reason = _without_secrets(str(error), self._secrets)
        if isinstance(error, redis.exceptions.OutOfMemoryError) or "-OOM " in reason:
            return LogFullError(f"Redis at {self.address} is at its maxmemory: {reason}")
        return ConnectionFailedError(f"Redis at {self.address} cannot be used: {reason}")


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Answers as bytes in the form of protocol 2, bounded waiting, and no repetition but ours."""
    settings = {name: value for name, value in settings.items() if not name.startswith(_NEEDS_PROTOCOL_3)}
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


def _pairs(answer: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(answer[::2], answer[1::2], strict=True))


def _texts(answer: list[bytes]) -> dict[str, str]:
    return {name.decode(): text.decode() for name, text in _pairs(answer).items()}


def _fresh_identity() -> int:
    return secrets.randbits(62) + 1


def _address_of(connection_class: Any, settings: dict[str, Any]) -> str:
    if settings.get("path"):
        return f"unix://{settings['path']}?db={settings.get('db') or 0}"
    scheme = "rediss" if issubclass(connection_class, redis.SSLConnection) else "redis"
    return f"{scheme}://{settings.get('host', 'localhost')}:{settings.get('port', 6379)}/{settings.get('db') or 0}"


def _masked(url: str) -> str:
    """A URL that may be malformed, without what could be a user, a password or a query."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _secrets_in(url: str) -> list[str]:
    rest = url.partition("://")[2]
    credentials = rest.rpartition("@")[0]
    found = [credentials, *credentials.split(":")]
    found += [value for name, value in parse_qsl(urlsplit(f"//x?{rest.partition('?')[2]}").query) if name == "password"]
    return [secret for secret in found if secret]


def _without_secrets(text: str, hidden: list[str]) -> str:
    for secret in sorted(hidden, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
