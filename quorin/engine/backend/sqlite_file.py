"""The file of the embedded control plane and log: connections, transactions and errors."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from quorin.engine.backend import keys
from quorin.engine.backend.partition_keys import SQL_VERSION_PARTITIONED
from quorin.errors import ConnectionFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_Borrowed = tuple[sqlite3.Connection, int]
"""A connection, and the inode of its file."""

_BUSY_TIMEOUT_SECONDS = 10.0
_MAX_IDLE = 16


class Database:
    """A pool of connections. A call borrows an idle one, or opens one if none is idle or the file was replaced.

    A connection is closed only when nothing else can use it: by the call that borrowed it, or after it was removed from
    the idle ones. So threads that :mod:`threading` does not know need no special care. There are as many connections as
    concurrent calls, and at most ``_MAX_IDLE`` stay open afterwards.
    """

    def __init__(self, directory: Path) -> None:
        self.address = str(directory)
        self._directory = directory
        self._path = directory / keys.SQL_FILE
        self._closed = False
        self._begin()

    def __reduce__(self) -> tuple[type[Database], tuple[Path]]:
        return Database, (self._directory,)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for this block only; errors of SQLite and the system become ``ConnectionFailedError``."""
        if self._closed:
            raise ConnectionFailedError(f"the connection to {self.address} is closed")
        try:
            borrowed = self._borrow()
            try:
                yield borrowed[0]
            finally:
                self._give_back(borrowed)
        except (sqlite3.Error, OSError) as error:
            raise ConnectionFailedError(f"the control plane in {self.address} cannot be used: {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: everything in the block, or nothing."""
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
        with self.connection() as connection, snapshot(connection):
            yield connection

    def close(self) -> None:
        """Close the idle connections of this process; a borrowed one is closed at the end of its call."""
        self._leave_parent()
        self._closed = True
        self._close_idle()

    def _borrow(self) -> _Borrowed:
        self._leave_parent()
        inode = self._inode()
        while (borrowed := _pop(self._idle)) is not None and borrowed[1] != inode:
            _abandoned.append(borrowed[0])
        if borrowed is None:
            connection = self._connect()
            borrowed = connection, self._inode()
        self._lent[id(borrowed)] = borrowed
        return borrowed

    def _give_back(self, borrowed: _Borrowed) -> None:
        self._leave_parent()
        if (
            self._lent.pop(id(borrowed), None) is None
        ):  # The block forked: this is the child, and the connection is the parent's.
            return
        if borrowed[0].in_transaction or len(self._idle) >= _MAX_IDLE:
            borrowed[0].close()
            return
        self._idle.append(borrowed)
        if self._closed:
            self._close_idle()

    def _close_idle(self) -> None:
        while (borrowed := _pop(self._idle)) is not None:
            borrowed[0].close()

    def _leave_parent(self) -> None:
        """After a fork: do not use the parent's connections, idle or borrowed."""
        if self._pid != os.getpid():
            _abandoned.extend(connection for connection, _ in [*self._idle, *self._lent.values()])
            self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._idle: list[_Borrowed] = []
        self._lent: dict[int, _Borrowed] = {}

    def _inode(self) -> int:
        """The file's inode, which changes when the file is replaced; 0 if there is none."""
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
        """Create the file, with access for its owner alone, if there is none.

        An existing file is never opened here. By POSIX, closing it would release the locks of all of this process's
        connections to it; another process could then believe it is the last one, and remove the write-ahead log under
        them (https://www.sqlite.org/howtocorrupt.html, 2.2). So a new file is closed before it gets its name.
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
                f"directory {self.address!r} cannot be created: its parent does not exist"
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
                # Unlike statements, a change of the mode does not wait for locks.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = OFF")  # Some builds of SQLite overwrite all deleted rows with zeros.
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version in (keys.SQL_VERSION, SQL_VERSION_PARTITIONED):
            return
        if version > SQL_VERSION_PARTITIONED:
            raise ConnectionFailedError(f"{self._path} has format {version}, this release reads {keys.SQL_VERSION}")
        connection.executescript(
            f"BEGIN IMMEDIATE; {keys.SQL_SCHEMA} INSERT INTO sqlite_sequence SELECT 'entries', {min_position()} "
            f"WHERE NOT EXISTS (SELECT * FROM sqlite_sequence WHERE name = 'entries'); "
            f"PRAGMA user_version = {keys.SQL_VERSION}; COMMIT;"
        )


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """A read transaction on a borrowed connection."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def data_version(connection: sqlite3.Connection) -> int:
    """A number that changes when another connection has changed the file, at a fraction of a query's cost. Numbers of
    different connections cannot be compared.
    """
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def has_store(directory: Path) -> bool:
    """Whether the file is in a directory. True also if that is unknown: opening the file raises the reason."""
    try:
        (directory / keys.SQL_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _pop(idle: list[_Borrowed]) -> _Borrowed | None:
    """Remove and return the last used connection, whose cache is warm; no other thread gets it then."""
    try:
        return idle.pop()
    except IndexError:
        return None


def min_position() -> int:
    """Positions are never behind the present time, like Redis' ids. So a new file, a file that lost its last calls in a
    power cut, or an older copy never assigns a position twice.
    """
    return time.time_ns() // 1_000_000 << keys.SEQUENCE_BITS


_abandoned: list[sqlite3.Connection] = []
"""Connections inherited through a fork, or whose file was replaced. Closing one could delete the write-ahead log of a
database in use, so they are kept open."""
