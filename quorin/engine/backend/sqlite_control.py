"""The embedded control plane: tables of the SQLite file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from quorin.engine.backend import growth_keys, keys, partition_keys
from quorin.engine.backend.protocols import Applied, Beginning, Beginnings, in_order

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Mapping

    from quorin.engine.backend.sqlite_file import Database


class EmbeddedControlPlane:
    """The tables of schemas, processes and namespaces, each row of one namespace."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    def legacy_currents(self) -> dict[str, str]:
        """What earlier releases stored."""
        with self._database.connection() as connection:
            if not connection.execute("SELECT * FROM sqlite_master WHERE name = 'current'").fetchone():
                return {}
            sql = "SELECT schema_name, segment_name FROM current WHERE namespace = ?"
            return dict(connection.execute(sql, (self._namespace,)).fetchall())

    def identity(self, *, remembered: int | None = None) -> int:
        """A random number, stored when it is first read."""
        sql = "SELECT identity FROM namespaces WHERE namespace = ?"
        with self._database.connection() as connection:
            row = connection.execute(sql, (self._namespace,)).fetchone()
        if row is not None:
            return int(row[0])
        with self._database.transaction() as connection:
            fresh = remembered or keys.fresh_identity()
            connection.execute("INSERT OR IGNORE INTO namespaces VALUES (?, ?)", (self._namespace, fresh))
            return int(connection.execute(sql, (self._namespace,)).fetchone()[0])

    def put_schema(self, schema_name: str, json: str, *, beginning: Beginnings = None) -> None:
        """Store a schema, in one transaction with its beginning."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO schemas VALUES (?, ?, ?)", (self._namespace, schema_name, json))
            self._begin(connection, schema_name, beginning)

    def swap_schema(self, schema_name: str, json: str, *, expected: str | None, beginning: Beginnings = None) -> bool:
        """Compare and set, in one transaction with the beginning."""
        with self._database.transaction() as connection:
            key = (self._namespace, schema_name)
            if expected is None:
                values: tuple[str, ...] = (*key, json)
                changed = connection.execute("INSERT OR IGNORE INTO schemas VALUES (?, ?, ?)", values).rowcount
            else:
                sql = "UPDATE schemas SET json = ? WHERE namespace = ? AND schema_name = ? AND json = ?"
                changed = connection.execute(sql, (json, *key, expected)).rowcount
            if changed:
                self._begin(connection, schema_name, beginning)
            return bool(changed)

    def _begin(self, connection: sqlite3.Connection, schema_name: str, beginning: Beginnings) -> None:
        key = (self._namespace, schema_name)
        connection.execute("DELETE FROM dropped WHERE namespace = ? AND schema_name = ?", key)
        if beginning is not None:
            self._forget_beginnings(connection, schema_name)
            values = [
                (self._in_partition(partition), schema_name, one.log_identity, one.position)
                for partition, one in enumerate(in_order(beginning))
            ]
            connection.executemany("INSERT INTO beginnings VALUES (?, ?, ?, ?)", values)

    def _forget_beginnings(self, connection: sqlite3.Connection, schema_name: str) -> None:
        sql = "DELETE FROM beginnings WHERE schema_name = ?1 AND (namespace = ?2 OR namespace GLOB ?2 || '/*')"
        connection.execute(sql, (schema_name, self._namespace))

    def _in_partition(self, partition: int) -> str:
        """The namespace of a partition's rows of ``beginnings``."""
        return f"{self._namespace}/{partition}" if partition else self._namespace

    def restore_schema(self, schema_name: str, json: str, *, beginning: Beginnings) -> bool:
        """Compare and set, in one transaction."""
        with self._database.transaction() as connection:
            key = (self._namespace, schema_name)
            sql = "INSERT OR IGNORE INTO schemas SELECT ?1, ?2, ?3 WHERE NOT EXISTS "
            sql += "(SELECT * FROM dropped WHERE namespace = ?1 AND schema_name = ?2)"
            if not connection.execute(sql, (*key, json)).rowcount:
                return False
            self._begin(connection, schema_name, beginning)
            return True

    def schemas(self) -> dict[str, str]:
        """The schemas' JSON by name."""
        with self._database.connection() as connection:
            sql = "SELECT schema_name, json FROM schemas WHERE namespace = ?"
            return dict(connection.execute(sql, (self._namespace,)).fetchall())

    def drop_schema(self, schema_name: str, *, expected: str | None = None) -> bool:
        """Compare, delete and record the name, in one transaction."""
        key = (self._namespace, schema_name)
        with self._database.transaction() as connection:
            sql = "DELETE FROM schemas WHERE namespace = ?1 AND schema_name = ?2 AND (?3 IS NULL OR json = ?3)"
            if not connection.execute(sql, (*key, expected)).rowcount:
                return False
            connection.execute("INSERT OR REPLACE INTO dropped VALUES (?, ?)", key)
            self._forget_beginnings(connection, schema_name)
            connection.execute("DELETE FROM checks WHERE namespace = ? AND schema_name = ?", key)
            return True

    def dropped_schemas(self) -> set[str]:
        """The names of dropped schemas."""
        with self._database.connection() as connection:
            sql = "SELECT schema_name FROM dropped WHERE namespace = ?"
            return {row[0] for row in connection.execute(sql, (self._namespace,))}

    def beginnings(self, partition: int = 0) -> dict[str, Beginning]:
        """Where schemas begin in the log of a partition, by name."""
        with self._database.connection() as connection:
            sql = "SELECT schema_name, log_identity, position FROM beginnings WHERE namespace = ?"
            return {name: Beginning(*at) for name, *at in connection.execute(sql, (self._in_partition(partition),))}

    def partition_count(self) -> int | None:
        """What is stored."""
        with self._database.connection() as connection:
            return settled_count(connection, self._namespace)

    def settle_partitions(self, count: int, *, stream_keys: Collection[str] = ()) -> int:  # noqa: ARG002 - any log
        """One transaction."""
        with self._database.transaction() as connection:
            stored = settled_count(connection, self._namespace)
            if stored is not None:
                return stored
            sql = "SELECT EXISTS (SELECT * FROM schemas WHERE namespace = ?1) OR EXISTS "
            sql += "(SELECT * FROM logs WHERE namespace = ?1)"
            if connection.execute(sql, (self._namespace,)).fetchone()[0]:
                return 1
            connection.execute(partition_keys.SQL_PARTITIONS)
            connection.execute("INSERT INTO partitions VALUES (?, ?)", (self._namespace, count))
            if count > 1:
                connection.execute(f"PRAGMA user_version = {partition_keys.SQL_VERSION_PARTITIONED}")
            return count

    def growth(self) -> str | None:
        """What is stored."""
        with self._database.connection() as connection:
            return _growth(connection, self._namespace)

    def swap_growth(
        self, json: str, *, expected: str | None, count: int | None = None, loads: Mapping[str, str] | None = None
    ) -> bool:
        """Compare and set, in one transaction with the number of partitions."""
        with self._database.transaction() as connection:
            if _growth(connection, self._namespace) != expected:
                return False
            if loads is not None and {name: text for name, text, _ in _loads(connection, self._namespace)} != loads:
                return False
            connection.execute(growth_keys.SQL_GROWTH)
            connection.execute("INSERT OR REPLACE INTO growth VALUES (?, ?)", (self._namespace, json))
            if count is not None:
                connection.execute(partition_keys.SQL_PARTITIONS)
                connection.execute("INSERT OR REPLACE INTO partitions VALUES (?, ?)", (self._namespace, count))
                connection.execute(f"PRAGMA user_version = {partition_keys.SQL_VERSION_PARTITIONED}")
            return True

    def put_checks(self, schema_name: str, json: str | None) -> None:
        """Set or remove the checks."""
        key = (self._namespace, schema_name)
        with self._database.transaction() as connection:
            if json is None:
                connection.execute("DELETE FROM checks WHERE namespace = ? AND schema_name = ?", key)
            else:
                connection.execute("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", (*key, json))

    def checks(self) -> dict[str, str]:
        """The checks' JSON by name."""
        with self._database.connection() as connection:
            sql = "SELECT schema_name, json FROM checks WHERE namespace = ?"
            return dict(connection.execute(sql, (self._namespace,)).fetchall())

    def swap_load(
        self, schema_name: str, json: str | None, *, expected: str | None, beside: tuple[str | None] | None = None
    ) -> bool:
        """Compare and set, in one transaction."""
        key = (self._namespace, schema_name)
        with self._database.transaction() as connection:
            sql = "SELECT json FROM loads WHERE namespace = ? AND schema_name = ?"
            stored = connection.execute(sql, key).fetchone()
            if (None if stored is None else stored[0]) != expected:
                return False
            if beside is not None and _growth(connection, self._namespace) != beside[0]:
                return False
            connection.execute("DELETE FROM loads WHERE namespace = ? AND schema_name = ?", key)
            if json is not None:
                connection.execute("INSERT INTO loads VALUES (?, ?, ?, ?)", (*key, json, time.time()))
            return True

    def loads(self) -> dict[str, tuple[str, float]]:
        """The loads, each with the time since it was stored."""
        with self._database.connection() as connection:
            return {name: (text, time.time() - at) for name, text, at in _loads(connection, self._namespace)}

    def announce(
        self, process: str, report: str, *, node: str = "", positions: Mapping[str, int] | None = None
    ) -> None:
        """Store a report and positions in one transaction."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO processes VALUES (?, ?, ?)", (self._namespace, process, report))
            values = (self._namespace, process, time.time())
            connection.execute("INSERT OR REPLACE INTO heartbeats VALUES (?, ?, ?)", values)
            rows = [(self._namespace, node, name, at, time.time()) for name, at in (positions or {}).items()]
            connection.executemany("INSERT OR REPLACE INTO replicas VALUES (?, ?, ?, ?, ?)", rows)

    def hold(self, node: str, schema_name: str, position: int) -> None:
        """Store a position as if it was announced."""
        with self._database.transaction() as connection:
            values = (self._namespace, node, schema_name, position, time.time())
            connection.execute("INSERT OR REPLACE INTO replicas VALUES (?, ?, ?, ?, ?)", values)

    def replicas(self) -> dict[tuple[str, str], Applied]:
        """The positions, each with the time of its report."""
        with self._database.connection() as connection:
            sql = "SELECT node, schema_name, position, seconds FROM replicas WHERE namespace = ?"
            rows = connection.execute(sql, (self._namespace,)).fetchall()
        return {(node, name): Applied(position, time.time() - at) for node, name, position, at in rows}

    def forget_replica(self, node: str, schema_name: str) -> None:
        """Remove the position."""
        with self._database.transaction() as connection:
            sql = "DELETE FROM replicas WHERE namespace = ? AND node = ? AND schema_name = ?"
            connection.execute(sql, (self._namespace, node, schema_name))

    def processes(self) -> dict[str, str]:
        """The reports by process."""
        with self._database.connection() as connection:
            sql = "SELECT process, report FROM processes WHERE namespace = ?"
            return dict(connection.execute(sql, (self._namespace,)).fetchall())

    def silences(self) -> dict[str, float]:
        """By the machine's clock, which all processes share."""
        with self._database.connection() as connection:
            sql = "SELECT process, seconds FROM heartbeats WHERE namespace = ?"
            return {name: time.time() - at for name, at in connection.execute(sql, (self._namespace,))}

    def withdraw(self, process: str) -> bool:
        """Remove a process's report."""
        with self._database.transaction() as connection:
            key = (self._namespace, process)
            connection.execute("DELETE FROM heartbeats WHERE namespace = ? AND process = ?", key)
            sql = "DELETE FROM processes WHERE namespace = ? AND process = ?"
            return connection.execute(sql, (self._namespace, process)).rowcount == 1


def settled_count(connection: sqlite3.Connection, namespace: str) -> int | None:
    """The stored number of partitions; None if there is none."""
    if not connection.execute("SELECT * FROM sqlite_master WHERE name = 'partitions'").fetchone():
        return None
    row = connection.execute("SELECT count FROM partitions WHERE namespace = ?", (namespace,)).fetchone()
    return None if row is None else int(row[0])


def _loads(connection: sqlite3.Connection, namespace: str) -> list[tuple[str, str, float]]:
    sql = "SELECT schema_name, json, seconds FROM loads WHERE namespace = ?"
    return connection.execute(sql, (namespace,)).fetchall()


def _growth(connection: sqlite3.Connection, namespace: str) -> str | None:
    if not connection.execute("SELECT * FROM sqlite_master WHERE name = 'growth'").fetchone():
        return None
    row = connection.execute("SELECT json FROM growth WHERE namespace = ?", (namespace,)).fetchone()
    return None if row is None else str(row[0])
