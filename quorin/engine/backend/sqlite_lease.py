"""The historian's lease of a log in SQLite: rows of the table ``historians``, read and written in the caller's
transaction. It ends by this machine's clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3


def lease(connection: sqlite3.Connection, log: int) -> tuple[str, int, int] | None:
    """Holder and token of the lease in force, and the ms until it ends."""
    # A lease that begins in the future was given before the clock was set back, and must not last that long.
    sql = "SELECT holder, token, until_ms - ?2 FROM historians WHERE log = ?1 AND since_ms <= ?2 AND ?2 < until_ms"
    row: tuple[str, int, int] | None = connection.execute(sql, (log, _now_ms())).fetchone()
    return row


def acquire(connection: sqlite3.Connection, log: int, holder: str, ttl_ms: int, replacing: str | None) -> int | None:
    """Take or renew the lease; returns its token, or None while another than ``replacing`` holds it."""
    held, now = lease(connection, log), _now_ms()
    if held is not None and held[0] not in (holder, replacing):
        return None
    if held is not None and held[0] == holder:
        token = held[1]
    else:
        row = connection.execute("SELECT token FROM historians WHERE log = ?", (log,)).fetchone()
        token = 1 if row is None else int(row[0]) + 1
    values = (log, holder, token, now, now + ttl_ms)
    connection.execute("INSERT OR REPLACE INTO historians VALUES (?, ?, ?, ?, ?)", values)
    return token


def release(connection: sqlite3.Connection, log: int, holder: str) -> bool:
    """End the lease if ``holder`` has it. The row stays, because the token must go on growing."""
    held = lease(connection, log)
    if held is None or held[0] != holder:
        return False
    connection.execute("UPDATE historians SET until_ms = since_ms WHERE log = ?", (log,))
    return True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
