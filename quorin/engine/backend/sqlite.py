"""The embedded control plane and log: one SQLite file in a directory, for any number of processes, without a server.

The file is in WAL mode with ``synchronous=NORMAL``: a finished write survives the death of any process at any moment.
A power cut may undo the last calls, each as a whole; the file stays intact.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from quorin.engine.backend import keys, sqlite_lease
from quorin.engine.backend.partition_count import OnlyLog, PartitionCount, Partitioned
from quorin.engine.backend.partition_keys import log_tag
from quorin.engine.backend.protocols import Bounds, DeadLetter, ReadResult, Tail, log_closed, not_the_historian
from quorin.engine.backend.sqlite_closable import ClosableEmbeddedLog, closed_in
from quorin.engine.backend.sqlite_control import EmbeddedControlPlane, settled_count
from quorin.engine.backend.sqlite_file import Database, data_version, min_position, snapshot
from quorin.engine.log.token import Token
from quorin.errors import ConnectionFailedError, LogClosedError, LogFullError, PartitionCountError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from quorin.engine.backend.protocols import Fence, Log
    from quorin.errors import QuorinError

_MAX_TAIL_ENTRIES = 8
_POLL_SECONDS = (0.00002, 0.005)
"""A waiting reader polls after a tenth of the time it has waited, within these bounds."""


class EmbeddedBackend(Partitioned):
    """A directory with ``quorin.db`` in it, mode 0600."""

    is_remote = False

    def __init__(self, directory: Path, namespace: str) -> None:
        self._database = Database(directory)
        self.namespace = namespace
        self.address = self._database.address
        self.control = EmbeddedControlPlane(self._database, namespace)
        self._count = PartitionCount(self.control, f"{namespace!r} in {self.address}")
        self.check()

    def log(
        self, stream_key: str = keys.DEFAULT_STREAM_KEY, partition: int | None = None, *, of: int | None = None
    ) -> Log:
        """The log of that name and partition."""
        keys.check_stream_key(stream_key)
        self._count.note(stream_key)
        if partition is None:
            return cast("Log", OnlyLog(EmbeddedLog(self._database, self.namespace, stream_key), self._count))
        count = self._count.check_partition(partition) if of is None else of
        tag = log_tag(self.namespace, count, partition)
        return EmbeddedLog(self._database, tag, stream_key, partition)

    def append_together(
        self, parts: Sequence[tuple[Log, Sequence[tuple[str, bytes]]]], *, max_entries: int | None = None
    ) -> list[Token | QuorinError]:
        """One log after the other: one file has them all."""
        results: list[Token | QuorinError] = []
        for log, entries in parts:
            try:
                results.append(log.append(entries, max_entries=max_entries)[-1])
            except (ConnectionFailedError, LogFullError, LogClosedError) as error:
                results.append(error)
        return results

    def check(self) -> None:
        """Open the file."""
        with self._database.connection():
            pass

    def facts(self) -> dict[str, str]:
        """SQLite's version, how it syncs, and the size of the file in bytes."""
        with self._database.connection() as connection:
            names = ("journal_mode", "synchronous", "page_count", "page_size")
            facts = {name: str(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in names}
        size = int(facts.pop("page_count")) * int(facts.pop("page_size"))
        return {"kind": "sqlite", "version": sqlite3.sqlite_version, "file_bytes": str(size), **facts}

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


class EmbeddedLog(ClosableEmbeddedLog):
    """The rows of the table ``entries`` that belong to one row of ``logs``."""

    def __init__(self, database: Database, tag: str, stream_key: str, partition: int = 0) -> None:
        """``tag`` is the log's namespace in the table: that of the deployment, or with the partition behind it."""
        self._database = database
        self._key = (tag, stream_key)
        self.stream_key = stream_key
        self.partition = partition

    def identity(self) -> int:
        """The random number created together with the log."""
        with self._database.transaction() as connection:
            return self._ensure(connection)[1]

    def append(self, entries: Sequence[tuple[str, bytes]], *, max_entries: int | None = None) -> list[Token]:
        """Append in one transaction."""
        with self._database.transaction() as connection:
            log, identity, count = self._ensure(connection)
            return self._append(connection, (log, identity), count, entries, max_entries)

    def append_and_read(
        self, schema_name: str, payload: bytes, *, after: int, max_entries: int | None = None
    ) -> tuple[Token, Tail | None]:
        """One transaction. The entry that was just appended is not read back."""
        with self._database.transaction() as connection:
            row = connection.execute(_SELECT_TAIL, (self._key[0], schema_name, self._key[1])).fetchone()
            if row is None:  # The log is new, or the schema is unknown.
                log, identity, count = self._ensure(connection)
                new = [(schema_name, payload)]
                return self._append(connection, (log, identity), count, new, max_entries)[0], None
            log, identity, count, last, trimmed, schema = row
            (token,) = self._append(connection, (log, identity), count, [(schema_name, payload)], max_entries)
            position = int(token)
            entries = [(position, payload)]
            if last > after:
                entries = connection.execute(_SELECT_BEHIND, (log, schema_name, after, _MAX_TAIL_ENTRIES)).fetchall()
        if entries[-1][0] != position:
            return token, None
        return token, Tail(identity, trimmed, schema, after, ReadResult(entries, position))

    def _append(
        self,
        connection: sqlite3.Connection,
        log_and_identity: tuple[int, int],
        count: int,
        entries: Sequence[tuple[str, bytes]],
        max_entries: int | None,
    ) -> list[Token]:
        """Append to the log with this id and identity, which has ``count`` entries."""
        log, identity = log_and_identity
        if max_entries is not None and count + len(entries) > max_entries:
            raise LogFullError(
                f"log {self.stream_key!r} in {self._database.address} has {count} entries, the limit is "
                f"{max_entries}: {len(entries)} more do not fit until a consumer has applied and trimmed some"
            )
        try:
            tokens = [
                Token((identity, int(connection.execute(_INSERT, (min_position(), log, *entry)).lastrowid or 0)))
                for entry in entries
            ]
        except sqlite3.IntegrityError:  # The trigger of closed logs.
            raise log_closed(self.stream_key, self._database.address) from None
        if tokens:
            sql = "UPDATE logs SET last_position = ?, entry_count = entry_count + ? WHERE id = ?"
            connection.execute(sql, (int(tokens[-1]), len(tokens), log))
        return tokens

    def read(
        self,
        after: int,
        *,
        schema_names: Collection[str] | None = None,
        max_entries: int = 1024,
        max_bytes: int = 16 << 20,
        block_ms: int = 0,
        follows: bool = False,  # noqa: ARG002 - a file loses no tail while it is read
    ) -> ReadResult:
        """Read in one snapshot; other schemas' entries are not touched."""
        started = time.monotonic()
        # One connection for the whole wait: its data_version changes only with writes of other connections.
        with self._database.connection() as connection:
            while True:
                version = data_version(connection) if block_ms else 0
                result = self._read_now(connection, after, schema_names, max_entries, max_bytes)
                if result.entries:
                    return result
                while (waited := time.monotonic() - started) * 1000 < block_ms:
                    pause = min(max(waited / 10, _POLL_SECONDS[0]), _POLL_SECONDS[1])
                    time.sleep(min(pause, block_ms / 1000 - waited))
                    looked_ns = time.time_ns()
                    if data_version(connection) != version:
                        break
                    result = ReadResult([], result.through, looked_ns)
                else:
                    return result

    def _read_now(
        self,
        connection: sqlite3.Connection,
        after: int,
        schema_names: Collection[str] | None,
        max_entries: int,
        max_bytes: int,
    ) -> ReadResult:
        entries: list[tuple[int, bytes]] = []
        looked_ns = time.time_ns()
        with snapshot(connection):
            log, last, _ = self._row(connection)
            if last <= after:
                return ReadResult([], after, looked_ns)
            # The index returns one schema's entries in order. Entries of several schemas are found faster by a scan
            # behind the position, because with the index SQLite would sort them, payloads included.
            index = "" if schema_names is not None and len(schema_names) == 1 else "NOT INDEXED"
            sql = f"SELECT position, payload FROM entries {index} WHERE log = ? AND position > ?"
            values: list[Any] = [log, after]
            if schema_names is not None:
                sql += f" AND schema_name IN ({','.join('?' * len(schema_names))})"
                values += schema_names
            size = 0
            for position, payload in connection.execute(sql + " ORDER BY position LIMIT ?", (*values, max_entries)):
                entries.append((position, payload))
                size += len(payload)
                if size >= max_bytes:
                    break
        complete = size < max_bytes and len(entries) < max_entries
        return ReadResult(entries, last, looked_ns) if complete else ReadResult(entries, entries[-1][0])

    def bounds(self) -> Bounds:
        """The first entry's position and the last one ever assigned."""
        with self._database.snapshot() as connection:
            return self._bounds(connection)

    def state(self, read: Collection[int] = ()) -> tuple[int, Bounds]:  # noqa: ARG002 - no replica takes over
        """One snapshot, unless the log does not exist yet."""
        with self._database.snapshot() as connection:
            sql = "SELECT identity FROM logs WHERE namespace = ? AND stream_key = ?"
            row = connection.execute(sql, self._key).fetchone()
            if row is not None:
                return int(row[0]), self._bounds(connection)
        with self._database.transaction() as connection:
            return self._ensure(connection)[1], self._bounds(connection)

    def sizes(self) -> tuple[int, int]:
        """The numbers of rows in the two tables."""
        with self._database.snapshot() as connection:
            sql = "SELECT id, entry_count FROM logs WHERE namespace = ? AND stream_key = ?"
            log, entries = connection.execute(sql, self._key).fetchone() or (0, 0)
            letters = connection.execute("SELECT COUNT(*) FROM dead_letters WHERE log = ?", (log,)).fetchone()[0]
        return int(entries), int(letters)

    def acquire_historian(self, holder: str, ttl_ms: int, *, replacing: str | None = None) -> int | None:
        """One transaction."""
        with self._database.transaction() as connection:
            return sqlite_lease.acquire(connection, self._ensure(connection)[0], holder, ttl_ms, replacing)

    def release_historian(self, holder: str) -> bool:
        """Compare and end, in one transaction."""
        with self._database.transaction() as connection:
            return sqlite_lease.release(connection, self._ensure(connection)[0], holder)

    def historian(self) -> tuple[str, float] | None:
        """The holder and the time until its lease ends."""
        with self._database.snapshot() as connection:
            held = sqlite_lease.lease(connection, self._row(connection)[0])
            return None if held is None else (held[0], held[2] / 1000)

    def trim(self, through: int, *, fence: Fence | None = None) -> int:
        """Delete in one transaction; the file keeps its size and reuses the space."""
        with self._database.transaction() as connection:
            log, _, _ = self._ensure(connection)
            if fence is not None and (sqlite_lease.lease(connection, log) or ())[:2] != (fence.holder, fence.token):
                raise not_the_historian(fence, self.stream_key, self._database.address)
            gone = connection.execute("DELETE FROM entries WHERE log = ? AND position <= ?", (log, through)).rowcount
            if gone:
                sql = "UPDATE logs SET entry_count = entry_count - ?, trimmed = MIN(?, last_position) WHERE id = ?"
                connection.execute(sql, (gone, through, log))
            return gone

    def bury(self, position: int, payload: bytes, reason: str, *, max_letters: int = keys.MAX_DEAD_LETTERS) -> int:
        """Store a dead letter."""
        with self._database.transaction() as connection:
            log, _, _ = self._ensure(connection)
            values = (log, position, payload, reason)
            connection.execute("INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?)", values)
            sql = (
                "DELETE FROM dead_letters WHERE log = ?1 AND position NOT IN "
                "(SELECT position FROM dead_letters WHERE log = ?1 ORDER BY position DESC LIMIT ?2)"
            )
            return connection.execute(sql, (log, max_letters)).rowcount

    def dead_letters(self) -> list[DeadLetter]:
        """The dead letters by position."""
        with self._database.snapshot() as connection:
            log, _, _ = self._row(connection)
            sql = "SELECT position, payload, reason FROM dead_letters WHERE log = ? ORDER BY position"
            return [DeadLetter(*row) for row in connection.execute(sql, (log,))]

    def remove_dead_letter(self, position: int) -> bool:
        """Remove a dead letter."""
        with self._database.transaction() as connection:
            log, _, _ = self._ensure(connection)
            sql = "DELETE FROM dead_letters WHERE log = ? AND position = ?"
            return connection.execute(sql, (log, position)).rowcount == 1

    def _bounds(self, connection: sqlite3.Connection) -> Bounds:
        log, last, trimmed = self._row(connection)
        first = connection.execute("SELECT MIN(position) FROM entries WHERE log = ?", (log,)).fetchone()[0]
        return Bounds(first or 0, last, trimmed, is_closed=closed_in(connection, log)[1] > 0)

    def _ensure(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """Id, identity and number of entries of this log, which is created if it does not exist."""
        sql = "SELECT id, identity, entry_count FROM logs WHERE namespace = ? AND stream_key = ?"
        row = connection.execute(sql, self._key).fetchone()
        if row is None:
            if (count := settled_count(connection, self._key[0]) or 1) > 1:
                raise PartitionCountError(
                    f"the deployment {self._key[0]!r} in {self._database.address} has {count} partitions, and no "
                    "number of them was stored when this process asked: connect anew"
                )
            values = (*self._key, keys.fresh_identity())
            connection.execute("INSERT INTO logs (namespace, stream_key, identity) VALUES (?, ?, ?)", values)
            row = connection.execute(sql, self._key).fetchone()
        return int(row[0]), int(row[1]), int(row[2])

    def _row(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """Id, last position and last trimmed position of this log; zeros if it does not exist."""
        sql = "SELECT id, last_position, trimmed FROM logs WHERE namespace = ? AND stream_key = ?"
        row = connection.execute(sql, self._key).fetchone()
        return (0, 0, 0) if row is None else (int(row[0]), int(row[1]), int(row[2]))


_SELECT_TAIL = (
    "SELECT logs.id, identity, entry_count, last_position, trimmed, json FROM logs JOIN schemas USING (namespace) "
    "WHERE namespace = ? AND schema_name = ? AND stream_key = ?"
)
_SELECT_BEHIND = (
    "SELECT position, payload FROM entries WHERE log = ? AND schema_name = ? AND position > ? ORDER BY position LIMIT ?"
)
_INSERT = (
    "INSERT INTO entries (position, log, schema_name, payload) "
    "VALUES ((SELECT MAX(seq + 1, ?) FROM sqlite_sequence WHERE name = 'entries'), ?, ?, ?)"
)
