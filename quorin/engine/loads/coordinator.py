"""The coordinator of a load: registers it, streams its rows to the log, and commits or aborts it.

It needs the control plane and the log only, not a segment: each node stages the rows and puts them in force by itself.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.consumer.held import abort
from quorin.engine.log.open_load import SILENT_SECONDS, OpenLoad, open_loads
from quorin.engine.log.record import Kind, decode, is_of_load, load_of, mark, peek, translate
from quorin.engine.ops.presence import Process
from quorin.engine.words import duration
from quorin.errors import (
    ConnectionFailedError,
    InvalidEntryError,
    QuorinError,
    ReplaceAbortedError,
    ReplaceConflictError,
)
from quorin.logging import get_logger
from quorin.wal import WALProducer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import pyarrow as pa

    from quorin.engine.backend import Backend, Log
    from quorin.schema import Schema

_RENEW_SECONDS = SILENT_SECONDS / 6
_log = get_logger(__name__)


class Coordinator:
    """One load of a schema, from ``with`` to :meth:`commit`; leaving the block without a commit aborts it.

    A coordinator that dies leaves an open load, which the next one aborts after half a minute.

    :raises ReplaceConflictError: if another load of the schema is open.
    """

    def __init__(self, backend: Backend, schema: Schema, *, stream_key: str = DEFAULT_STREAM_KEY) -> None:
        self.row_count = 0
        self.started_ns = time.time_ns()
        self._schema = schema
        self._name = schema.__name__
        self._control = backend.control
        self._log = backend.log(stream_key)
        self._producer = WALProducer(backend, stream_key=stream_key)
        self._open: OpenLoad | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="quorin-load", daemon=True)

    def __enter__(self) -> Coordinator:
        earlier = self._earlier()
        identity, bounds = self._log.state()
        name = f"{Process.this()}"
        # The record must hold the log before the entry that begins the load is in it.
        new = OpenLoad(self._name, self._log.stream_key, identity, bounds.last, 0, name, self.started_ns)
        if earlier is not None:
            new = replace(new, earlier_begin=earlier.held, earlier_commit=earlier.commit)
        expected = None if earlier is None else earlier.to_json()
        if not self._control.swap_load(self._name, new.to_json(), expected=expected):
            raise ReplaceConflictError(f"another process began to replace {self._name!r} at the same time")
        self._open = new
        try:
            self._exchange(state="open", begin=self._append(mark(Kind.begin, self._schema)))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._renewing.start()
        _log.info("load_began", schema=self._name, load=self.load)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._renewing.ident is not None:
            self._renewing.join()
        if self._open is None:
            return
        try:
            if abort(self._open, self._log, self._control):
                _log.info("load_aborted", schema=self._name, load=self.load)
        except ConnectionFailedError as failure:
            # Nothing is replaced without a commit; the next coordinator, or the trimming consumer, ends the load.
            _log.warning("load_left_open", schema=self._name, load=self.load, error=str(failure))
        self._open = None

    @property
    def load(self) -> int:
        """The load's id: the position at which it began."""
        return 0 if self._open is None else self._open.begin

    def append(self, rows: pa.RecordBatch) -> None:
        """Append rows, a canonical batch.

        :raises ReplaceAbortedError: if another process has aborted the load. :raises LogFullError: if the log is full.
        """
        if rows.num_rows:
            self._check_open()
            self._producer.append_batch(self._schema, rows, Kind.load, load=self.load)
            self.row_count += rows.num_rows

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The appended rows, as the log has them."""
        for kind, load, payload in _records(self._log, self._name, self.load, self._log.bounds().last):
            if kind is Kind.load and load == self.load:
                yield translate(decode(payload), self._schema)

    def commit(self) -> int:
        """Append the commit. Returns its position: a node that has applied it serves the load's rows.

        :raises ReplaceAbortedError: if another process has aborted the load.
        """
        self._exchange(state="committing")
        load = self.load
        position = self._append(mark(Kind.commit, self._schema, load=load, load_rows=self.row_count))
        try:
            self._exchange(state="committed", commit=position)
        except ReplaceAbortedError:
            # Another process took this one for dead. Which of the two entries comes first decides, on every node.
            if _ends_before(self._log, self._name, load, position):
                raise
        self._open = None
        _log.info("load_committed", schema=self._name, load=load, position=position, rows=self.row_count)
        return position

    def _earlier(self) -> OpenLoad | None:
        """A committed load that some node may not have applied yet. The load of a dead coordinator is aborted.

        :raises ReplaceConflictError: if another coordinator's load is open.
        """
        found = open_loads(self._control).get(self._name)
        if found is None:
            return None
        load, silent_seconds = found
        if load.log_identity != self._log.identity():
            self._control.swap_load(self._name, None, expected=load.to_json())
            return None
        if load.state == "committed":
            return load
        if load.state != "aborting" and silent_seconds < SILENT_SECONDS:
            raise ReplaceConflictError(
                f"{load.coordinator} is replacing {self._name!r} since position {load.begin}, and was seen "
                f"{duration(silent_seconds)} ago; `quorin replace {self._name} --abort` ends that"
            )
        if not abort(load, self._log, self._control):
            raise ReplaceConflictError(f"another process is replacing {self._name!r}, or has just ended a replacement")
        return self._earlier()

    def _renew(self) -> None:
        while not self._ended.wait(_RENEW_SECONDS):
            try:
                self._exchange()
            except ReplaceAbortedError:
                return
            except QuorinError as error:
                _log.warning("load_not_renewed", schema=self._name, load=self.load, error=str(error))

    def _exchange(self, **changes: object) -> None:
        with self._lock:
            if self._open is None:
                return
            changed = self._open.exchange(self._control, **changes)
            if changed is None:
                load, self._open = self._open, None
                raise _aborted(load)
            self._open = changed

    def _check_open(self) -> None:
        if self._open is None:
            raise ReplaceAbortedError(f"another process has aborted the replacement of {self._name!r}")

    def _append(self, payload: bytes) -> int:
        return self._log.append([(self._name, payload)])[-1]


def end_load(backend: Backend, schema_name: str, *, stream_key: str = DEFAULT_STREAM_KEY) -> int | None:
    """Abort the open load of a schema, whoever coordinates it; its id, or None if there is none to abort."""
    found = open_loads(backend.control).get(schema_name)
    if found is None or found[0].state == "committed":
        return None
    return found[0].begin if abort(found[0], backend.log(stream_key), backend.control) else None


def _aborted(load: OpenLoad) -> ReplaceAbortedError:
    return ReplaceAbortedError(
        f"another process has aborted the replacement of {load.schema_name!r} that began at position {load.begin}; "
        "nothing was replaced"
    )


def _records(log: Log, name: str, after: int, through: int) -> Iterator[tuple[Kind, int, bytes]]:
    """The records of loads of a schema: kind, load, and bytes."""
    while after < through:
        found = log.read(after, schema_names=[name])
        for position, payload in found.entries:
            if position <= through and is_of_load(payload):
                try:
                    yield peek(payload).kind, load_of(payload)[0], payload
                except InvalidEntryError:
                    continue
        if found.through <= after:
            return
        after = found.through


def _ends_before(log: Log, name: str, load: int, position: int) -> bool:
    """Whether a load was ended before the commit at a position."""
    if log.bounds().trimmed > load:  # Only the end of a load lets the log be trimmed behind its beginning.
        return True
    return any(
        kind is Kind.begin or (kind is Kind.abort and of_load == load)
        for kind, of_load, _ in _records(log, name, load, position - 1)
    )
