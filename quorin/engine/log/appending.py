"""Appends rows to the logs of a deployment: to the only one, or each row to that of its entity's partition."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from quorin import metrics
from quorin.engine.backend import logs
from quorin.engine.format.partition import partition_of, ranges
from quorin.engine.log.record import Kind, encode
from quorin.engine.log.token import Token
from quorin.engine.rows.partitions import split
from quorin.errors import ConnectionFailedError, LogClosedError, LogFullError, QuorinError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from quorin.engine.backend import Backend, Log, Tail
    from quorin.schema import Schema

    Entries = list[tuple[str, bytes]]

Appended = TypeVar("Appended")

MAX_ENTRY_ROWS = 8192
MAX_ENTRY_BYTES = 1 << 20
MAX_APPEND_BYTES = 8 << 20
MAX_SPLIT_ROWS, MAX_SPLIT_BYTES = 1 << 17, 8 << 20
"""What is split at once: rows that the cache holds while they are put in order, and enough for large entries."""
_BLOCKED_SECONDS = 0.02
_GROWTH_SECONDS = 10.0
"""How long a write waits at least for a growth to be done; closing all logs takes milliseconds."""


class Appender:
    """Appends to one log of each partition, all of the same name. ``block_ms``: how long to retry."""

    def __init__(self, backend: Backend, stream_key: str, max_entries: int | None, block_ms: float) -> None:
        self._backend = backend
        self._stream_key = stream_key
        self._max_entries = max_entries
        self._block_ms = block_ms
        self._logs: list[Log] = []
        """One a partition; empty until the deployment was asked how many there are.

        Threads share it, and it is replaced when the deployment has grown: an attempt takes the list once, and appends
        to these logs what it has split by their number.
        """

    def append_row(self, name: str, entity_id: str, payload: bytes) -> Token:
        """Append the record of one row."""
        try:
            return self._append_row(name, entity_id, payload)
        except LogClosedError as closed:
            return self._in_successors(lambda: self._append_row(name, entity_id, payload), closed)

    def _append_row(self, name: str, entity_id: str, payload: bytes) -> Token:
        def append() -> Token:
            found = self._logs or self._found_logs()
            if len(found) == 1:
                return found[0].append([(name, payload)], max_entries=self._max_entries)[-1]
            return self._append_parts(found, {partition_of(entity_id, len(found)): [(name, payload)]}, {})

        position = self._retried(append)
        metrics.count_appended(name, 1, 1)
        return position

    def append_row_and_read(self, name: str, entity_id: str, payload: bytes, after: int) -> tuple[Token, Tail | None]:
        """:meth:`append_row`, and read the schema's entries behind ``after``: None with several partitions."""
        try:
            return self._append_row_and_read(name, entity_id, payload, after)
        except LogClosedError as closed:
            return self._in_successors(lambda: self._append_row(name, entity_id, payload), closed), None

    def _append_row_and_read(self, name: str, entity_id: str, payload: bytes, after: int) -> tuple[Token, Tail | None]:
        found = self._retried(self._found_logs)
        if len(found) > 1:
            return self.append_row(name, entity_id, payload), None
        position, tail = self._retried(
            lambda: found[0].append_and_read(name, payload, after=after, max_entries=self._max_entries)
        )
        metrics.count_appended(name, 1, 1)
        return position, tail

    def append_batch(self, schema: Schema, batch: pa.RecordBatch, kind: Kind, load: int) -> Token:
        """Append a canonical batch in entries, so many bytes at a time. Returns the position of the last.

        If a log is closed meanwhile, the whole batch goes to its successors: rows that are written twice take effect
        once. Rows of a load do not: loads have one log.
        """
        try:
            return self._append_batch(schema, batch, kind, load)
        except LogClosedError as closed:
            if load:
                raise
            return self._in_successors(lambda: self._append_batch(schema, batch, kind, load), closed)

    def _append_batch(self, schema: Schema, batch: pa.RecordBatch, kind: Kind, load: int) -> Token:
        position = Token()
        if not batch.num_rows:
            return position
        found = self._retried(self._found_logs)
        if len(found) > 1:
            for rows in _slices(batch, MAX_SPLIT_ROWS, MAX_SPLIT_BYTES):
                position = Token.covering(position, self._append_split(found, schema, rows, kind, load))
            return position
        payloads, rows, size = [], 0, 0
        for part in cut(batch):
            payloads.append(encode(kind, schema, part, load=load))
            rows += part.num_rows
            size += len(payloads[-1])
            if size >= MAX_APPEND_BYTES:
                position = Token.covering(position, self._append(found[0], schema, payloads, rows))
                payloads, rows, size = [], 0, 0
        return Token.covering(position, self._append(found[0], schema, payloads, rows)) if payloads else position

    def _append(self, log: Log, schema: Schema, payloads: list[bytes], rows: int) -> Token:
        name = schema.__name__
        entries = [(name, payload) for payload in payloads]
        position = self._retried(lambda: log.append(entries, max_entries=self._max_entries)[-1])
        metrics.count_appended(name, len(payloads), rows)
        return position

    def _append_split(self, found: list[Log], schema: Schema, batch: pa.RecordBatch, kind: Kind, load: int) -> Token:
        """Append a batch to the logs of its rows' partitions, all at once."""
        name = schema.__name__
        parts = {
            partition: [(name, encode(kind, schema, piece, load=load)) for piece in cut(rows)]
            for partition, rows in split(batch, len(found)).items()
        }
        entries, written = sum(map(len, parts.values())), dict[int, Token]()
        position = self._retried(lambda: self._append_parts(found, parts, written))
        metrics.count_appended(name, entries, batch.num_rows)
        return position

    def _append_parts(self, found: list[Log], parts: dict[int, Entries], written: dict[int, Token]) -> Token:
        """Append to several logs, by whose number the parts were split, what is not in ``written`` yet.

        :raises LogFullError, ConnectionFailedError: naming the partitions that were not written, and those that were.
        """
        missing = [partition for partition in parts if partition not in written]
        together = [(found[partition], parts[partition]) for partition in missing]
        results = self._backend.append_together(together, max_entries=self._max_entries)
        failed: dict[int, QuorinError] = {}
        for partition, result in zip(missing, results, strict=True):
            if isinstance(result, Token):
                written[partition] = result
            else:
                failed[partition] = result
        if failed:
            raise _not_written(failed, written, len(found))
        return Token.covering(*(written[partition] for partition in parts))

    def _in_successors(self, append: Callable[[], Appended], closed: LogClosedError) -> Appended:
        """Append to the logs that the deployment has after it has grown, or to the same ones if they are reopened.

        :raises LogClosedError: if that takes too long. :raises ConnectionFailedError: if the control plane, or a log,
            is away for longer than ``block_ms``.
        """
        from quorin.engine.repartition.waiting import settled

        deadline = time.monotonic() + max(_GROWTH_SECONDS, self._block_ms / 1000)
        while self._retried(lambda: settled(self._backend, deadline)):
            self._logs = []
            try:
                return append()
            except LogClosedError as again:
                closed = again
        raise closed

    def _found_logs(self) -> list[Log]:
        found = self._logs
        if not found:
            found = self._logs = logs(self._backend, self._stream_key)
        return found

    def _retried(self, append: Callable[[], Appended]) -> Appended:
        """Append; retry for ``block_ms`` while the log is full or unreachable."""
        try:
            return append()
        except (LogFullError, ConnectionFailedError):
            if not self._block_ms:
                raise
        started = time.monotonic()
        while True:
            time.sleep(_BLOCKED_SECONDS)
            try:
                return append()
            except (LogFullError, ConnectionFailedError):
                if (time.monotonic() - started) * 1000 >= self._block_ms:
                    raise


def cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of at most 8,192 rows and about 1 MiB each; a single row may be larger."""
    for part in _slices(batch, MAX_ENTRY_ROWS, MAX_ENTRY_BYTES):
        if part.num_rows > 1 and part.nbytes > 2 * MAX_ENTRY_BYTES:
            half = part.num_rows // 2
            yield from cut(part.slice(0, half))
            yield from cut(part.slice(half))
        else:
            yield part


def _slices(batch: pa.RecordBatch, max_rows: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Slices of at most so many rows, and about so many bytes if rows are alike."""
    if not batch.num_rows:
        return
    rows = min(max_rows, max(1, max_bytes * batch.num_rows // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _named(partitions: dict[int, QuorinError] | dict[int, Token]) -> str:
    return f"partition{'s' if len(partitions) > 1 else ''} {ranges(partitions)}"


def _not_written(failed: dict[int, QuorinError], written: dict[int, Token], count: int) -> QuorinError:
    error = next(iter(failed.values()))
    there = f", those of {_named(written)} were" if written else ""
    message = (
        f"the rows of {_named(failed)} of {count} were not written{there}: writing all of them again is safe; {error}"
    )
    for kind in (LogClosedError, LogFullError):
        if any(isinstance(one, kind) for one in failed.values()):
            return kind(message)
    return ConnectionFailedError(message)
