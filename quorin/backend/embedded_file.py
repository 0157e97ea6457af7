"""The file of the embedded control plane and log: connections, transactions and errors."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from quorin import keys
from quorin.errors import ConnectionFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUSY_TIMEOUT_SECONDS = 10.0


class Database:
    """One connection a thread and process, opened when it is first needed, and anew if the file was replaced."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory)
        self._directory = directory
        self._path = directory / keys.SQL_FILE
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._open: dict[int, tuple[sqlite3.Connection, int]] = {}
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection; SQLite's and the system's errors become ``ConnectionFailedError``."""
        if self._closed:
            raise ConnectionFailedError(f"the connection to {self.address} is closed")
        try:
            yield self._connection()
        except (sqlite3.Error, OSError) as error:
            raise ConnectionFailedError(f"the control plane in {self.address} cannot be used: {error}") from error

    def data_version(self) -> int:
        """Another number whenever others have changed the file since, at a fraction of a query's cost."""
        with self.connection() as connection:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all that the block does, or nothing."""
        with self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: every query of the block sees the same state."""
        with self.connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close all connections of this process."""
        self._leave_parent()
        with self._lock:
            self._closed = True
            for connection, _ in self._open.values():
                connection.close()
            self._open = {}

    def _connection(self) -> sqlite3.Connection:
        self._leave_parent()
        known = self._open.get(threading.get_ident())
        if known is not None and known[1] == self._inode():
            return known[0]
        with self._lock:
            if known is not None:
                _abandoned.append(known[0])
            alive = {thread.ident for thread in threading.enumerate()}
            for ident in self._open.keys() - alive:
                self._open.pop(ident)[0].close()
            connection = self._connect()
            self._open[threading.get_ident()] = (connection, self._inode())
        return connection

    def _leave_parent(self) -> None:
        """After a fork: leave the parent's connections alone, and its lock, which a thread of it may have held."""
        if self._pid != os.getpid():
            _abandoned.extend(connection for connection, _ in self._open.values())
            self._open, self._lock, self._pid = {}, threading.Lock(), os.getpid()

    def _inode(self) -> int:
        """Tells this file from one that took its place; 0 if there is none."""
        try:
            return self._path.stat().st_ino
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def _connect(self) -> sqlite3.Connection:
        self._make_file()
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_file(self) -> None:
        """Make the file, for its owner alone, if there is none.

        One that is there is never opened here: to close it would take away the locks of all connections that this
        process has to it, as POSIX has it, and another process would take itself for the last one and remove the
        write-ahead log under them (https://www.sqlite.org/howtocorrupt.html, 2.2). So it is closed before it has its
        name.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            if not self._path.exists():
                descriptor, unnamed = tempfile.mkstemp(dir=self._directory, prefix=".quorin-")
                os.close(descriptor)
                try:
                    with suppress(FileExistsError):
                        os.link(unnamed, self._path)
                finally:
                    Path(unnamed).unlink()
        except FileNotFoundError as error:
            raise ConnectionFailedError(
                f"directory {self.address!r} cannot be made: its parent does not exist"
            ) from error
        except FileExistsError as error:
            raise ConnectionFailedError(f"expected a directory, and {self.address!r} is something else") from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + _BUSY_TIMEOUT_SECONDS
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                # Changing the mode does not wait for others as statements do.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = OFF")  # Some systems write zeros over all that is trimmed.
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == keys.SQL_VERSION:
            return
        if version > keys.SQL_VERSION:
            raise ConnectionFailedError(f"{self._path} has format {version}, this release reads {keys.SQL_VERSION}")
        connection.executescript(
            f"BEGIN IMMEDIATE; {keys.SQL_SCHEMA} INSERT INTO sqlite_sequence SELECT 'entries', {least_position()} "
            f"WHERE NOT EXISTS (SELECT * FROM sqlite_sequence WHERE name = 'entries'); "
            f"PRAGMA user_version = {keys.SQL_VERSION}; COMMIT;"
        )


def has_store(directory: Path) -> bool:
    """Whether the file is in a directory; also where that cannot be seen, which opening it explains."""
    try:
        (directory / keys.SQL_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def least_position() -> int:
    """Positions are never behind the present time, as Redis' ids are not: what a new file gives, or one that lost its
    last calls in a power cut, or an older copy, was never given before.
    """
    return time.time_ns() // 1_000_000 << keys.SEQUENCE_BITS


_abandoned: list[sqlite3.Connection] = []
"""Connections that came through a fork, or whose file was replaced. Closing one could delete the log file of a database
that is in use, so they are kept open instead."""
