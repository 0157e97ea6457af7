"""The coordinator of a load: registers it, streams its rows to the log, and commits or aborts it.

It needs the control plane and the log only, not a segment: each node stages the rows and puts them in force by itself.
"""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quorin.engine.backend import logs
from quorin.engine.backend.keys import DEFAULT_STREAM_KEY, SEQUENCE_BITS
from quorin.engine.consumer.held import abort, append_marks, finish
from quorin.engine.format.growth import Growth, State
from quorin.engine.log.open_load import SILENT_SECONDS, OpenLoad, open_loads
from quorin.engine.log.record import Kind, decode, is_of_load, load_of, mark, peek, translate
from quorin.engine.log.token import Token
from quorin.engine.ops.presence import Process
from quorin.engine.rows.partitions import partitions_of
from quorin.engine.words import duration
from quorin.errors import (
    ConnectionFailedError,
    InvalidEntryError,
    LogClosedError,
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

    from quorin.engine.arrays import Int64s
    from quorin.engine.backend import Backend, Log
    from quorin.schema import Schema

_RENEW_SECONDS = SILENT_SECONDS / 6
_log = get_logger(__name__)


class Coordinator:
    """One load of a schema, from ``with`` to :meth:`commit`; leaving the block without a commit aborts it.

    The control plane decides, in one exchange, whether a load is committed; the log of each partition then gets the
    entry that says so. A coordinator that dies before that leaves an open load, which the next one aborts after half a
    minute; after it, whoever finds the load first writes the entries that are missing.

    :raises ReplaceConflictError: if another load of the schema is open, or the deployment is growing.
    """

    def __init__(self, backend: Backend, schema: Schema, *, stream_key: str = DEFAULT_STREAM_KEY) -> None:
        self.row_count = 0
        self.started_ns = time.time_ns()
        self._schema = schema
        self._name = schema.__name__
        self._backend = backend
        self._control = backend.control
        self._stream_key = stream_key
        self._logs: list[Log] = []
        self._rows: Int64s = np.zeros(1, np.int64)
        self._producer = WALProducer(backend, stream_key=stream_key)
        self._open: OpenLoad | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="quorin-load", daemon=True)

    def __enter__(self) -> Coordinator:
        growth = self._settled()
        states = [log.state() for log in self._logs]
        identities = tuple(identity for identity, _ in states)
        earlier = self._earlier(identities)
        # The same number in all logs, behind all that they have. The record must hold them before the load is in them.
        # No load had it before: one whose entries were all lost may be known to a node, and to the history.
        begin = max(bounds.last for _, bounds in states) + 1 + secrets.randbelow(1 << SEQUENCE_BITS)
        new = OpenLoad(self._name, self._logs[0].stream_key, begin, identities, f"{Process.this()}", self.started_ns)
        if earlier is not None:
            new = replace(new, earlier_begin=earlier.held, earlier_ends=earlier.ends)
        if not new.store(self._control, in_place_of=earlier, beside=(growth,)):
            raise ReplaceConflictError(
                f"another process began to replace {self._name!r}, or to grow the deployment, at the same time"
            )
        self._open = new
        try:
            # What is pushed from here on comes after the load.
            for log in self._logs:
                log.skip_to(begin)
            marks = dict.fromkeys(range(len(self._logs)), mark(Kind.begin, self._schema, load=begin))
            for result in append_marks(new, self._backend, marks).values():
                if not isinstance(result, Token):
                    raise result
            self._exchange(state="open")
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
            if abort(self._open, self._backend):
                _log.info("load_aborted", schema=self._name, load=self.load)
        except ConnectionFailedError as failure:
            # Nothing is replaced without a commit; the next coordinator, or the trimming consumer, ends the load.
            _log.warning("load_left_open", schema=self._name, load=self.load, error=str(failure))
        self._open = None

    @property
    def load(self) -> int:
        """The load's id: a position behind which each log has what comes after its beginning."""
        return 0 if self._open is None else self._open.begin

    @property
    def partition_count(self) -> int:
        """The number of logs that the load is in."""
        return len(self._logs)

    def append(self, rows: pa.RecordBatch) -> None:
        """Append rows, a canonical batch.

        :raises ReplaceAbortedError: if another process has aborted the load. :raises LogFullError: if the log is full.
        """
        if rows.num_rows:
            self._check_open()
            self._producer.append_batch(self._schema, rows, Kind.load, load=self.load)
            count = len(self._logs)
            self._rows = self._rows + np.bincount(partitions_of(rows.column(0), count), minlength=count)
            self.row_count += rows.num_rows

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The appended rows, as the logs have them, one partition after the other."""
        for log in self._logs:
            for kind, load, payload in _records(log, self._name, self.load, log.bounds().last):
                if kind is Kind.load and load == self.load:
                    yield translate(decode(payload), self._schema)

    def commit(self) -> Token:
        """Decide that the load is committed, and append that to all logs. Returns the positions: a node that has
        applied those of the logs that it holds serves the load's rows.

        :raises ReplaceAbortedError: if another process has aborted the load.
        :raises ConnectionFailedError: if the control plane or a log cannot be reached. If it was decided, the load
            comes into force all the same.
        """
        self._check_open()
        with self._lock:
            load, rows = self._open, tuple(self._rows.tolist())
            decided = None if load is None else load.exchange(self._control, state="committing", rows=rows)
            self._open = None
        if load is None or decided is None:
            raise _aborted(self._name)
        tokens = finish(decided, self._backend, self._schema)
        _log.info("load_committed", schema=self._name, load=load.begin, position=int(tokens), rows=self.row_count)
        return tokens

    def _settled(self) -> str | None:
        """Find the logs, while the deployment is not growing. Returns what the control plane has of growths.

        :raises ReplaceConflictError: if it is growing.
        """
        self._backend.forget_partitions()
        stored = self._control.growth()
        growth = Growth.parse(stored)
        if growth.state is not State.settled:
            raise ReplaceConflictError(
                f"{growth.coordinator} is growing the deployment to {2 * growth.count} partitions: replace "
                f"{self._name!r} when that is done, or end it with `quorin repartition --abort`"
            )
        self._logs = logs(self._backend, self._stream_key)
        self._rows = np.zeros(len(self._logs), np.int64)
        return stored

    def _earlier(self, identities: tuple[int, ...]) -> OpenLoad | None:
        """A committed load that some node may not have applied yet. The load of a dead coordinator is ended.

        :raises ReplaceConflictError: if another coordinator's load is open.
        """
        found = open_loads(self._control).get(self._name)
        if found is None:
            return None
        load, silent_seconds = found
        if load.state != "committing" and load.logs != identities:
            # Of logs that were wiped, or closed when the deployment grew: then with a commit, which they keep.
            self._control.swap_load(self._name, None, expected=load.to_json())
            return self._earlier(identities)
        if load.state == "committed":
            return load
        if load.state != "aborting" and silent_seconds < SILENT_SECONDS:
            raise ReplaceConflictError(
                f"{load.coordinator} is replacing {self._name!r} since position {load.begin}, and was seen "
                f"{duration(silent_seconds)} ago; `quorin replace {self._name} --abort` ends that"
            )
        if load.state == "committing":
            with suppress(LogClosedError):  # It is over all the same.
                finish(load, self._backend)
        elif not abort(load, self._backend):
            raise ReplaceConflictError(f"another process is replacing {self._name!r}, or has just ended a replacement")
        return self._earlier(identities)

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
            self._open = changed
            if changed is None:
                raise _aborted(self._name)

    def _check_open(self) -> None:
        if self._open is None:
            raise _aborted(self._name)


def abort_load(backend: Backend, schema_name: str) -> int | None:
    """Abort the open load of a schema, whoever coordinates it; its id, or None if there is none to abort. One whose
    commit is decided is finished.
    """
    found = open_loads(backend.control).get(schema_name)
    if found is None:
        return None
    load = found[0]
    if load.state == "committing":
        with suppress(LogClosedError):
            finish(load, backend)
    return load.begin if abort(load, backend) else None


def _aborted(schema_name: str) -> ReplaceAbortedError:
    return ReplaceAbortedError(f"another process has aborted the replacement of {schema_name!r}; nothing was replaced")


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
