"""What growths and loads do with a log in SQLite: close it, reopen it, begin it behind others, skip positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.backend.closable import ClosedBy
from quorin.engine.backend.growth_keys import SQL_CLOSED

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

    from quorin.engine.backend.sqlite_file import Database


class ClosableEmbeddedLog:
    """Part of :class:`quorin.engine.backend.sqlite.EmbeddedLog`, whose row it uses."""

    _database: Database

    def _ensure(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        raise NotImplementedError

    def _row(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        raise NotImplementedError

    def close_for_appends(self, growth: int, stream_keys: Collection[str] = ()) -> int | None:  # noqa: ARG002
        """One transaction. A trigger refuses every insert into the log from then on. The names of the logs are in the
        control plane, which is in the same file, and so is not lost without the log.
        """
        with self._database.transaction() as connection:
            log, _, _ = self._ensure(connection)
            ended, closed = closed_in(connection, log)
            if growth <= ended:
                return None
            if not closed:
                _make_closed_table(connection)
                connection.execute("INSERT OR REPLACE INTO closed_logs VALUES (?, ?, ?)", (log, ended, growth))
            return self._row(connection)[1]

    def closed_by(self) -> ClosedBy | None:
        """One transaction; the names of the logs are not noted here."""
        with self._database.transaction() as connection:
            growth = closed_in(connection, self._row(connection)[0])[1]
            return ClosedBy(growth, ()) if growth else None

    def reopen_for_appends(self, growth: int) -> bool:
        """One transaction."""
        with self._database.transaction() as connection:
            log, _, _ = self._ensure(connection)
            ended, closed = closed_in(connection, log)
            left = closed if closed > growth else 0
            _make_closed_table(connection)
            values = (log, max(ended, growth), left)
            connection.execute("INSERT OR REPLACE INTO closed_logs VALUES (?, ?, ?)", values)
            return closed > left

    def cut(self, after: int, through: int) -> int:
        """One transaction."""
        with self._database.transaction() as connection:
            log, _, trimmed = self._row(connection)
            if not log or not closed_in(connection, log)[1]:
                return 0
            sql = "DELETE FROM entries WHERE log = ? AND position > ? AND position <= ?"
            gone = connection.execute(sql, (log, after, through)).rowcount
            sql = "UPDATE logs SET entry_count = entry_count - ?1, last_position = "
            sql += "(SELECT COALESCE(MAX(position), ?2) FROM entries WHERE log = ?3) WHERE id = ?3"
            connection.execute(sql, (gone, trimmed, log))
            return gone

    def begin_behind(self, position: int) -> int:
        """One transaction."""
        with self._database.transaction() as connection:
            log, identity, _ = self._ensure(connection)
            sql = "UPDATE logs SET last_position = ?1, trimmed = CASE entry_count WHEN 0 THEN ?1 ELSE trimmed END "
            sql += "WHERE id = ?2 AND last_position < ?1"
            connection.execute(sql, (position, log))
            connection.execute("UPDATE sqlite_sequence SET seq = MAX(seq, ?) WHERE name = 'entries'", (position,))
            return identity

    def skip_to(self, position: int) -> int:
        """One transaction."""
        with self._database.transaction() as connection:
            log, identity, _ = self._ensure(connection)
            sql = "UPDATE logs SET last_position = MAX(last_position, ?) WHERE id = ?"
            connection.execute(sql, (position, log))
            connection.execute("UPDATE sqlite_sequence SET seq = MAX(seq, ?) WHERE name = 'entries'", (position,))
            return identity


def closed_in(connection: sqlite3.Connection, log: int) -> tuple[int, int]:
    """The last growth of a log that was ended, and the one that closed it; 0 for none."""
    if not connection.execute("SELECT * FROM sqlite_master WHERE name = 'closed_logs'").fetchone():
        return 0, 0
    sql = "SELECT ended, closed FROM closed_logs WHERE log = ?"
    return connection.execute(sql, (log,)).fetchone() or (0, 0)


def _make_closed_table(connection: sqlite3.Connection) -> None:
    for statement in SQL_CLOSED:
        connection.execute(statement)
