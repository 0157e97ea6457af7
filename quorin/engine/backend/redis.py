"""The control plane and the log on Redis 6.2 or newer: hashes, and a stream that only Quorin writes to.

The server's persistence decides what survives its crash; ``appendonly yes`` with ``appendfsync always`` loses no
acknowledged write. Calls are retried twice, with back-off, when a connection breaks. So an append whose answer was lost
may be in the log twice, which takes effect once.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from quorin.engine.backend import keys
from quorin.engine.backend.partition_count import OnlyLog, PartitionCount, Partitioned
from quorin.engine.backend.partition_keys import log_tag, partitions_key
from quorin.engine.backend.protocols import Bounds, DeadLetter, ReadResult, Tail, log_closed, not_the_historian
from quorin.engine.backend.redis_allowance import MAX_SINGLE_SEQUENCE, Allowance
from quorin.engine.backend.redis_closable import ClosableRedisLog
from quorin.engine.backend.redis_commands import begun, bulk, packed
from quorin.engine.backend.redis_connection import RedisServer, pairs, texts
from quorin.engine.backend.redis_control import RedisControlPlane
from quorin.engine.backend.redis_together import append_together
from quorin.engine.backend.redis_urls import route_of_client, route_of_url
from quorin.engine.log.token import Token
from quorin.errors import ConnectionFailedError, LogFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from quorin.engine.backend.protocols import Fence, Log
    from quorin.engine.backend.redis_routes import Route
    from quorin.errors import QuorinError

_MAX_READ_ENTRIES = 4096
_MAX_TAIL_ENTRIES, _MAX_TAIL_BYTES = 8, 256 << 10
_FACTS = (
    "aof_enabled", "aof_last_write_status", "maxmemory", "maxmemory_policy", "used_memory", "redis_mode", "server_mode",
    "role", "connected_slaves", "uptime_in_seconds",
)  # fmt: skip


class RedisBackend(Partitioned):
    """Quorin's own connections to the servers of a URL or a client."""

    is_remote = True

    def __init__(
        self, route: Route, namespace: str, *, must_answer: bool = True, partitions: int | None = None
    ) -> None:
        self._route = route
        self._server = RedisServer(route)
        self._servers: dict[str, RedisServer] = {}
        """Of partitions that have a route of their own, by hash tag."""
        self.namespace = namespace
        self.address = self._server.address
        self.control = RedisControlPlane(self._server, namespace)
        self._count = PartitionCount(self.control, f"{namespace!r} at {self.address}", partitions)
        if must_answer:
            self._server.ping_once()

    @classmethod
    def from_url(cls, url: str, namespace: str, *, must_answer: bool = True) -> RedisBackend:
        """Connect to the server, cluster or service of Sentinel that a URL names."""
        route, partitions = route_of_url(url, namespace)
        return cls(route, namespace, must_answer=must_answer, partitions=partitions)

    @classmethod
    def from_client(cls, client: Any, namespace: str, *, must_answer: bool = True) -> RedisBackend:
        """Connect with the settings of a ``redis.Redis`` or ``redis.RedisCluster``; its connections are not used."""
        return cls(route_of_client(client, namespace), namespace, must_answer=must_answer)

    def log(
        self, stream_key: str = keys.DEFAULT_STREAM_KEY, partition: int | None = None, *, of: int | None = None
    ) -> Log:
        """The log of that name and partition."""
        keys.check_stream_key(stream_key)
        self._count.note(stream_key)
        if partition is None:
            return cast("Log", OnlyLog(RedisLog(self._server, self.namespace, stream_key), self._count))
        count = self._count.check_partition(partition) if of is None else of
        tag = log_tag(self.namespace, count, partition)
        return RedisLog(self._server_of(tag), self.namespace, stream_key, partition, tag)

    def append_together(
        self, parts: Sequence[tuple[Log, Sequence[tuple[str, bytes]]]], *, max_entries: int | None = None
    ) -> list[Token | QuorinError]:
        """One script a log, sent to all masters before the first answer is read."""
        return append_together(cast("Sequence[Any]", parts), max_entries)

    def _server_of(self, tag: str) -> RedisServer:
        server = self._servers.get(tag)
        if server is None:
            route = self._route.beside(tag)
            server = self._server if route is self._route else RedisServer(route)
            server = self._servers.setdefault(tag, server)
        return server

    def check(self) -> None:
        """One ``PING``."""
        self._server.ping_once()

    def facts(self) -> dict[str, str]:
        """Version, persistence, memory and clock from ``INFO``; ``appendfsync`` if the user may read it."""
        lines = self._server.call("INFO").decode().splitlines()
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        seconds, microseconds = self._server.call("TIME")
        facts = {name: info[name] for name in _FACTS if name in info}
        facts |= {"kind": "redis", "version": info["redis_version"], "time": f"{int(seconds)}.{int(microseconds):06}"}
        try:
            facts["appendfsync"] = self._server.call("CONFIG", "GET", "appendfsync")[1].decode()
        except ConnectionFailedError:  # Only an administrator may read it.
            facts["appendfsync"] = "unknown"
        return facts

    def close(self) -> None:
        """Close the connections."""
        for server in (self._server, *self._servers.values()):
            server.close()


class RedisLog(ClosableRedisLog):
    """One stream, its identity and its dead letters."""

    def __init__(
        self, server: RedisServer, namespace: str, stream_key: str, partition: int = 0, tag: str | None = None
    ) -> None:
        """``tag`` is the hash tag of the log's keys, the namespace for the only log of a deployment."""
        self._server = server
        self._keys = keys.log_keys(tag or namespace, stream_key)
        self._created_together = [self._keys.stream, self._keys.identity, self._keys.trimmed, self._keys.closed]
        self._is_only = tag in (None, namespace)
        if self._is_only:
            self._created_together.append(partitions_key(namespace))
        self._schemas = keys.schemas_key(namespace)
        self._entry_bytes = 1 << 20
        self._allowance = Allowance()
        self._known_identity = 0
        """What the append script said last; the allowance that it granted is no older."""
        self._single_entries: dict[str, bytes] = {}
        self.stream_key = stream_key
        self.partition = partition

    @property
    def server(self) -> RedisServer:
        """The connections to the log."""
        return self._server

    def identity(self) -> int:
        """The random number created together with the stream."""
        return int(self._server.run(keys.LUA_IDENTITY, self._created_together, [keys.fresh_identity()]))

    def append(self, entries: Sequence[tuple[str, bytes]], *, max_entries: int | None = None) -> list[Token]:
        """Append in one script; most single entries by ``XADD`` alone, which takes a third of the server's time."""
        if not entries:
            return []
        identity = self._known_identity  # Before the append, so that it is never the identity of a later log.
        if len(entries) == 1 and self._allowance.covers_one(max_entries):
            position = self._single_appended(self._server.call_packed(self._single_append(*entries[0])))
            if position is not None:
                return [Token((identity, position))]
        asked_at = time.monotonic()
        answer = self._server.run(keys.LUA_APPEND, self._created_together, _append_arguments(entries, max_entries))
        return self._appended(answer, len(entries), max_entries, asked_at)

    def prepared_append(
        self, entries: Sequence[tuple[str, bytes]], max_entries: int | None
    ) -> tuple[bytes, Callable[[Any], Token | None]]:
        """The command of :meth:`append`, and what makes the last token of its answer: None if nothing was written, as
        the log must be created first.
        """
        identity, asked_at = self._known_identity, time.monotonic()
        if len(entries) == 1 and self._allowance.covers_one(max_entries):

            def token_of(stream_id: Any) -> Token | None:
                position = self._single_appended(stream_id)
                return None if position is None else Token((identity, position))

            return self._single_append(*entries[0]), token_of
        command = self._append_script(entries, max_entries)
        return command, lambda answer: self._appended(answer, len(entries), max_entries, asked_at)[-1]

    def _append_script(self, entries: Sequence[tuple[str, bytes]], max_entries: int | None) -> bytes:
        """The call of the script by its text, for servers that may not know it."""
        arguments = _append_arguments(entries, max_entries)
        return packed(("EVAL", keys.LUA_APPEND, len(self._created_together), *self._created_together, *arguments))

    def append_and_read(
        self, schema_name: str, payload: bytes, *, after: int, max_entries: int | None = None
    ) -> tuple[Token, Tail | None]:
        """One round trip; the append is first."""
        if not self._is_only:  # Its schema is at another server than its entries.
            return self.append([(schema_name, payload)], max_entries=max_entries)[0], None
        asked_at, known_identity = time.monotonic(), self._known_identity
        is_single = self._allowance.covers_one(max_entries)
        if is_single:
            append = self._single_append(schema_name, payload)
        else:
            append = self._append_script([(schema_name, payload)], max_entries)
        count = max(1, min(_MAX_TAIL_ENTRIES, _MAX_TAIL_BYTES // self._entry_bytes))
        read = begun(1, "XREAD", "COUNT", count, "STREAMS", self._keys.stream) + bulk(keys.stream_id_of(after))
        ask_schema = begun(0, "HGET", self._schemas, schema_name)
        ask_state = begun(0, "MGET", self._keys.identity, self._keys.trimmed)
        answers = self._server.call_together(append, read, ask_schema, ask_state)
        if isinstance(answers[0], Exception):
            raise answers[0]
        if is_single:
            position = self._single_appended(answers[0])
            if position is None:
                return self.append([(schema_name, payload)], max_entries=max_entries)[0], None
            token = Token((known_identity, position))
        else:
            (token,) = self._appended(answers[0], 1, max_entries, asked_at)
        if any(isinstance(answer, Exception) for answer in answers) or None in (*answers[1:3], answers[3][0]):
            return token, None
        (_, found), schema, (identity, trimmed) = answers[1][0], answers[2], answers[3]
        seen, _ = _entries(found, after, {schema_name.encode()})
        if seen.through < token or self._lost_tail(after):
            return token, None
        return token, Tail(int(identity), int(trimmed or 0), schema.decode(), after, seen)

    def _appended(self, answer: Any, count: int, max_entries: int | None, asked_at: float) -> list[Token]:
        """The positions in the script's answer. :raises LogFullError: if the entries did not fit."""
        ids, length, identity = answer[0], answer[1], int(answer[2])
        if length < 0:
            raise log_closed(self.stream_key, self._server.address)
        if not ids:
            raise LogFullError(
                f"log {self.stream_key!r} at {self._server.address} has {length} entries, the limit is {max_entries}: "
                f"{count} more do not fit until a consumer has applied and trimmed some"
            )
        tokens = [Token((identity, keys.position_of(stream_id))) for stream_id in ids]
        self._known_identity = identity
        self._allowance.grant(length, max_entries, tokens[-1], asked_at)
        return tokens

    def _single_append(self, schema_name: str, payload: bytes) -> bytes:
        """The command that appends an entry to an existing stream."""
        head = self._single_entries.get(schema_name)
        if head is None:
            words = ("XADD", self._keys.stream, "NOMKSTREAM", "*", keys.FIELD_SCHEMA, schema_name, keys.FIELD_PAYLOAD)
            head = self._single_entries[schema_name] = packed(words, following=1)
        return b"%b$%d\r\n%b\r\n" % (head, len(payload), payload)

    def _single_appended(self, stream_id: bytes | None) -> int | None:
        """The position; None if the stream must be created first, together with its identity."""
        if stream_id is None:
            self._allowance.end()
            return None
        position = keys.position_of(stream_id)
        if position & keys.MAX_SEQUENCE > MAX_SINGLE_SEQUENCE:
            self._allowance.end()
        return position

    def read(
        self,
        after: int,
        *,
        schema_names: Collection[str] | None = None,
        max_entries: int = 1024,
        max_bytes: int = 16 << 20,
        block_ms: int = 0,
        follows: bool = False,
    ) -> ReadResult:
        """Read the stream; entries of other schemas are fetched and dropped.

        Redis limits a read by entries, not bytes, so the limit follows the largest entry of the last read.
        """
        count = max(1, min(max_entries, max_bytes // self._entry_bytes, _MAX_READ_ENTRIES))
        block = min(block_ms, self._server.longest_block_ms)
        waiting = ("BLOCK", block) if block > 0 else ()
        # The server looks after this moment, and after the wait if it found nothing.
        sent_ns = time.time_ns()
        answer = self._server.call(
            "XREAD", "COUNT", count, *waiting, "STREAMS", self._keys.stream, keys.stream_id_of(after)
        )
        if follows and self._lost_tail(after):
            return ReadResult([], after, lost_tail=True)
        if not answer:
            return ReadResult([], after, sent_ns + max(block, 0) * 1_000_000)
        names = None if schema_names is None else {name.encode() for name in schema_names}
        result, self._entry_bytes = _entries(answer[0][1], after, names)
        return replace(result, confirmed_ns=sent_ns) if len(answer[0][1]) < count else result

    def _lost_tail(self, after: int) -> bool:
        """Whether the entry at a position that was read is lost. Only a new connection may be to a server that lacks
        it, so each is looked at once, and after the answer that it gave.
        """
        verified = self._server.purposes
        if self._keys.stream in verified or not after:
            return False
        verified.add(self._keys.stream)
        return after in self.state([after])[1].lost

    def bounds(self) -> Bounds:
        """The first entry's position and the last one ever assigned."""
        names = [self._keys.stream, self._keys.trimmed, self._keys.closed]
        first, last, trimmed, closed = self._server.run(keys.LUA_BOUNDS, names, [])
        return Bounds(keys.position_of(first), keys.position_of(last), int(trimmed), is_closed=bool(closed))

    def state(self, read: Collection[int] = ()) -> tuple[int, Bounds]:
        """All in one script."""
        ids = [keys.stream_id_of(position) for position in read]
        answer = self._server.run(keys.LUA_STATE, self._created_together, [keys.fresh_identity(), *ids])
        first, last, trimmed, closed, identity, *has = answer
        gone = (position for position, is_there in zip(read, has, strict=True) if not is_there)
        lost = frozenset(position for position in gone if position > int(trimmed))
        ends = keys.position_of(first), keys.position_of(last)
        return int(identity), Bounds(*ends, int(trimmed), lost, is_closed=bool(closed))

    def sizes(self) -> tuple[int, int]:
        """The lengths of the stream and of the hash of dead letters."""
        return int(self._server.call("XLEN", self._keys.stream)), int(self._server.call("HLEN", self._keys.dead))

    def acquire_historian(self, holder: str, ttl_ms: int, *, replacing: str | None = None) -> int | None:
        """One script; Redis ends the lease by expiring its key."""
        names = [self._keys.historian, self._keys.historian_token]
        return int(self._server.run(keys.LUA_LEASE, names, [holder, ttl_ms, replacing or ""])) or None

    def release_historian(self, holder: str) -> bool:
        """Compare and delete."""
        return bool(self._server.run(keys.LUA_RELEASE, [self._keys.historian], [holder]))

    def historian(self) -> tuple[str, float] | None:
        """The holder and the time to live of its key."""
        holder, left_ms = self._server.run(keys.LUA_HISTORIAN, [self._keys.historian], [])
        return None if holder is None else (holder.decode(), left_ms / 1000)

    def trim(self, through: int, *, fence: Fence | None = None) -> int:
        """Trim the stream exactly; it stays, with its last id, when nothing is left in it."""
        through, names = min(int(through), self.bounds().last), self._keys
        keys_ = [names.stream, names.trimmed, names.historian, names.historian_token]
        held = ["", 0] if fence is None else [fence.holder, fence.token]
        gone = int(self._server.run(keys.LUA_TRIM, keys_, [keys.stream_id_of(through + 1), through, *held]))
        if gone < 0 and fence is not None:
            raise not_the_historian(fence, self.stream_key, self._server.address)
        return gone

    def bury(self, position: int, payload: bytes, reason: str, *, max_letters: int = keys.MAX_DEAD_LETTERS) -> int:
        """Store a dead letter."""
        arguments = [int(position), payload, reason, max_letters]
        return int(self._server.run(keys.LUA_BURY, [self._keys.dead, self._keys.dead_reasons], arguments))

    def dead_letters(self) -> list[DeadLetter]:
        """The dead letters by position."""
        payloads = pairs(self._server.call("HGETALL", self._keys.dead))
        reasons = texts(self._server.call("HGETALL", self._keys.dead_reasons))
        letters = [DeadLetter(int(key), payload, reasons.get(key.decode(), "")) for key, payload in payloads.items()]
        return sorted(letters, key=lambda letter: letter.position)

    def remove_dead_letter(self, position: int) -> bool:
        """Remove a dead letter."""
        self._server.call("HDEL", self._keys.dead_reasons, int(position))
        return bool(self._server.call("HDEL", self._keys.dead, int(position)))


def _append_arguments(entries: Sequence[tuple[str, bytes]], max_entries: int | None) -> list[Any]:
    arguments: list[Any] = [keys.fresh_identity(), -1 if max_entries is None else max_entries]
    for entry in entries:
        arguments += entry
    return arguments


def _entries(answer: list[Any], after: int, schema_names: set[bytes] | None) -> tuple[ReadResult, int]:
    """The entries of some schemas (None: all) in the answer to an ``XREAD`` behind ``after``, and the largest size."""
    entries, position, largest = [], after, 1024
    for stream_id, words in answer:
        fields = pairs(words)
        position, payload = keys.position_of(stream_id), fields.get(keys.FIELD_PAYLOAD, b"")
        largest = max(largest, len(payload))
        if schema_names is None or fields.get(keys.FIELD_SCHEMA) in schema_names:
            entries.append((position, payload))
    return ReadResult(entries, position), largest
