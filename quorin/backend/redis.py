"""The control plane and the log on Redis 6.2 or newer: hashes, and a stream that only scripts write.

What survives a crash of the server is what its own persistence keeps; ``appendonly yes`` with ``appendfsync always``
loses nothing that was acknowledged. Calls are repeated twice, with back-off, when a connection breaks. An append whose
answer was lost may so be in the log twice, which applies once in effect.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from quorin import keys
from quorin.backend.protocols import Bounds, DeadLetter, ReadResult
from quorin.errors import ConnectionFailedError, LogFullError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_DEFAULTS: dict[str, Any] = {"socket_connect_timeout": 2.0, "socket_timeout": 5.0}
_RETRIES = 2
_NEEDS_PROTOCOL_3 = ("maint_notifications", "oss_cluster_maint", "event_dispatcher", "cache")
_LARGEST_READ_COUNT = 4096


class RedisBackend:
    """Connections of its own to the server that a URL or a client names."""

    def __init__(self, pool: redis.ConnectionPool, namespace: str) -> None:
        self._server = _Server(pool)
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
        connection_class = settings.pop("connection_class", redis.Connection)
        return cls(_pool(connection_class, settings), namespace)

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
        return cls(_pool(pool.connection_class, dict(pool.connection_kwargs)), namespace)

    def log(self, stream_key: str = keys.DEFAULT_STREAM_KEY) -> RedisLog:
        """The log of that name."""
        return RedisLog(self._server, self._namespace, stream_key)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()


class RedisControlPlane:
    """Two hashes of one namespace."""

    def __init__(self, server: _Server, namespace: str) -> None:
        self._server = server
        self._current = keys.current_key(namespace)
        self._schemas = keys.schemas_key(namespace)

    def current(self, schema_name: str) -> str | None:
        """The name of the current segment, or None."""
        with self._server.client() as client:
            name = client.hget(self._current, schema_name)
        return None if name is None else name.decode()

    def set_current(self, schema_name: str, segment_name: str, *, expected: str | None) -> bool:
        """Compare and set."""
        return bool(self._server.run(keys.LUA_SWAP, [self._current], [schema_name, expected or "", segment_name]))

    def clear_current(self, schema_name: str, *, expected: str) -> bool:
        """Compare and delete."""
        return bool(self._server.run(keys.LUA_SWAP, [self._current], [schema_name, expected, ""]))

    def put_schema(self, schema_name: str, json: str) -> None:
        """Keep a schema's JSON."""
        with self._server.client() as client:
            client.hset(self._schemas, schema_name, json)

    def schemas(self) -> dict[str, str]:
        """The schemas' JSON by name."""
        with self._server.client() as client:
            found = client.hgetall(self._schemas)
        return {name.decode(): json.decode() for name, json in found.items()}

    def drop_schema(self, schema_name: str) -> bool:
        """Forget a schema's JSON."""
        with self._server.client() as client:
            return bool(client.hdel(self._schemas, schema_name))


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
        with self._server.client() as client:
            answer = client.xread(
                {self._keys.stream: keys.stream_id_of(after)}, count=count, block=block if block > 0 else None
            )
        if not answer:
            return ReadResult([], after)
        found: list[tuple[bytes, dict[bytes, bytes]]] = answer[0][1]
        self._entry_bytes = max(1024, *(len(fields[keys.FIELD_PAYLOAD]) for _, fields in found))
        wanted = None if schema_names is None else {name.encode() for name in schema_names}
        entries = [
            (keys.position_of(stream_id), fields[keys.FIELD_PAYLOAD])
            for stream_id, fields in found
            if wanted is None or fields[keys.FIELD_SCHEMA] in wanted
        ]
        return ReadResult(entries, keys.position_of(found[-1][0]))

    def bounds(self) -> Bounds:
        """The first entry's position and the last one that was given."""
        first, last, trimmed = self._server.run(keys.LUA_BOUNDS, [self._keys.stream, self._keys.trimmed], [])
        return Bounds(keys.position_of(first), keys.position_of(last), int(trimmed))

    def trim(self, through: int) -> int:
        """Trim the stream exactly; it stays, with its last id, when nothing is left in it."""
        through = min(through, self.bounds().last)
        arguments = [keys.stream_id_of(through + 1), through]
        return int(self._server.run(keys.LUA_TRIM, [self._keys.stream, self._keys.trimmed], arguments))

    def bury(self, position: int, payload: bytes, reason: str) -> None:
        """Keep a dead letter."""
        self._server.run(keys.LUA_BURY, [self._keys.dead, self._keys.dead_reasons], [position, payload, reason])

    def dead_letters(self) -> list[DeadLetter]:
        """The dead letters by position."""
        with self._server.client() as client:
            payloads, reasons = client.hgetall(self._keys.dead), client.hgetall(self._keys.dead_reasons)
        letters = [DeadLetter(int(key), payload, reasons.get(key, b"").decode()) for key, payload in payloads.items()]
        return sorted(letters, key=lambda letter: letter.position)

    def remove_dead_letter(self, position: int) -> bool:
        """Forget a dead letter."""
        with self._server.client() as client:
            client.hdel(self._keys.dead_reasons, str(position))
            return bool(client.hdel(self._keys.dead, str(position)))


class _Server:
    """A client over a pool, with scripts loaded once, errors translated, and everything made anew after a fork."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool = pool
        self._secrets = [str(pool.connection_kwargs[k]) for k in ("password",) if pool.connection_kwargs.get(k)]
        self._client: redis.Redis | None = redis.Redis(connection_pool=pool)
        self._scripts: dict[str, Any] = {}
        self.address = _address_of(pool)
        timeout = pool.connection_kwargs.get("socket_timeout")
        self.longest_block_ms = int(timeout * 500) if timeout else 5000

    @contextmanager
    def client(self) -> Iterator[Any]:
        """The client; Redis' errors become ``ConnectionFailedError``, or ``LogFullError`` when its memory is out."""
        if self._client is None:
            raise ConnectionFailedError(f"the connection to {self.address} is closed")
        try:
            yield self._client
        except redis.exceptions.RedisError as error:
            reason = _without_secrets(str(error), self._secrets)
            if isinstance(error, redis.exceptions.OutOfMemoryError) or "-OOM " in reason:
                raise LogFullError(f"Redis at {self.address} is at its maxmemory: {reason}") from None
            raise ConnectionFailedError(f"Redis at {self.address} cannot be used: {reason}") from None

    def run(self, script: str, keys_: list[str], arguments: list[Any]) -> Any:
        """Run a Lua script by its digest; the server gets its text when it does not know it."""
        with self.client() as client:
            known = self._scripts.get(script)
            if known is None:
                known = self._scripts[script] = client.register_script(script)
            return known(keys=keys_, args=arguments)

    def ping_once(self) -> None:
        """Find out at once whether the server can be used, without repeating."""
        settings = {**self._pool.connection_kwargs, "retry": Retry(ExponentialBackoff(), 0)}
        with self.client():
            try:
                connection = self._pool.connection_class(**settings)
            except TypeError as error:
                raise ConnectionFailedError(f"a setting for Redis at {self.address} is not known: {error}") from None
            try:
                connection.connect()
                connection.send_command("PING")
                connection.read_response()
            finally:
                connection.disconnect()

    def close(self) -> None:
        """Close the pool's connections."""
        client, self._client = self._client, None
        if client is not None:
            self._pool.disconnect()


def _pool(connection_class: Any, settings: dict[str, Any]) -> redis.ConnectionPool:
    """A pool of our own: answers as bytes in the form of protocol 2, bounded waiting, and repeated calls."""
    settings = {name: value for name, value in settings.items() if not name.startswith(_NEEDS_PROTOCOL_3)}
    for name, value in _DEFAULTS.items():
        if settings.get(name) is None:
            settings[name] = value
    settings |= {
        "protocol": 2,
        "decode_responses": False,
        "encoding": "utf-8",
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), _RETRIES),
        "retry_on_error": [redis.exceptions.ConnectionError, redis.exceptions.TimeoutError],
    }
    return redis.ConnectionPool(connection_class=connection_class, **settings)


def _fresh_identity() -> int:
    return secrets.randbits(62) + 1


def _address_of(pool: redis.ConnectionPool) -> str:
    settings = pool.connection_kwargs
    if settings.get("path"):
        return f"unix://{settings['path']}?db={settings.get('db') or 0}"
    scheme = "rediss" if issubclass(pool.connection_class, redis.SSLConnection) else "redis"
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
