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
from quorin.errors import ConnectionFailedError, LogFullError, QuorinError

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


class Appender:
    """Appends to one log of each partition, all of the same name. ``block_ms``: how long to retry."""

    def __init__(self, backend: Backend, stream_key: str, max_entries: int | None, block_ms: float) -> None:
        self._backend = backend
        self._stream_key = stream_key
        self._max_entries = max_entries
        self._block_ms = block_ms
        self._logs: list[Log] = []
        """One a partition; empty until the deployment was asked how many there are."""

    def append_row(self, name: str, entity_id: str, payload: bytes) -> Token:
        """Append the record of one row."""

        def append() -> Token:
            logs = self._logs or self._found_logs()
            if len(logs) == 1:
                return logs[0].append([(name, payload)], max_entries=self._max_entries)[-1]
            return self._append_parts({partition_of(entity_id, len(logs)): [(name, payload)]}, {})

        position = self._retried(append)
        metrics.count_appended(name, 1, 1)
        return position

    def append_row_and_read(self, name: str, entity_id: str, payload: bytes, after: int) -> tuple[Token, Tail | None]:
        """:meth:`append_row`, and read the schema's entries behind ``after``: None with several partitions."""
        if len(self._retried(self._found_logs)) > 1:
            return self.append_row(name, entity_id, payload), None
        position, tail = self._retried(
            lambda: self._logs[0].append_and_read(name, payload, after=after, max_entries=self._max_entries)
        )
        metrics.count_appended(name, 1, 1)
        return position, tail

    def append_batch(self, schema: Schema, batch: pa.RecordBatch, kind: Kind, load: int) -> Token:
        """Append a canonical batch in entries, so many bytes at a time. Returns the position of the last."""
        position, count = Token(), len(self._retried(self._found_logs)) if batch.num_rows else 1
        if count > 1:
            for rows in _slices(batch, MAX_SPLIT_ROWS, MAX_SPLIT_BYTES):
                position = Token.covering(position, self._append_split(schema, rows, kind, load))
            return position
        payloads, rows, size = [], 0, 0
        for part in cut(batch):
            payloads.append(encode(kind, schema, part, load=load))
            rows += part.num_rows
            size += len(payloads[-1])
            if size >= MAX_APPEND_BYTES:
                position = Token.covering(position, self._append(schema, payloads, rows))
                payloads, rows, size = [], 0, 0
        return Token.covering(position, self._append(schema, payloads, rows)) if payloads else position

    def _append(self, schema: Schema, payloads: list[bytes], rows: int) -> Token:
        name = schema.__name__
        entries = [(name, payload) for payload in payloads]
        position = self._retried(lambda: self._logs[0].append(entries, max_entries=self._max_entries)[-1])
        metrics.count_appended(name, len(payloads), rows)
        return position

    def _append_split(self, schema: Schema, batch: pa.RecordBatch, kind: Kind, load: int) -> Token:
        """Append a batch to the logs of its rows' partitions, all at once."""
        name = schema.__name__
        parts = {
            partition: [(name, encode(kind, schema, piece, load=load)) for piece in cut(rows)]
            for partition, rows in split(batch, len(self._logs)).items()
        }
        entries, written = sum(map(len, parts.values())), dict[int, Token]()
        position = self._retried(lambda: self._append_parts(parts, written))
        metrics.count_appended(name, entries, batch.num_rows)
        return position

    def _append_parts(self, parts: dict[int, Entries], written: dict[int, Token]) -> Token:
        """Append to several logs what is not in ``written`` yet.

        :raises LogFullError, ConnectionFailedError: naming the partitions that were not written, and those that were.
        """
        missing = [partition for partition in parts if partition not in written]
        together = [(self._logs[partition], parts[partition]) for partition in missing]
        results = self._backend.append_together(together, max_entries=self._max_entries)
        failed: dict[int, QuorinError] = {}
        for partition, result in zip(missing, results, strict=True):
            if isinstance(result, Token):
                written[partition] = result
            else:
                failed[partition] = result
        if failed:
            raise self._not_written(failed, written)
        return Token.covering(*(written[partition] for partition in parts))

    def _not_written(self, failed: dict[int, QuorinError], written: dict[int, Token]) -> QuorinError:
        error = next(iter(failed.values()))
        there = f", those of {_named(written)} were" if written else ""
        message = (
            f"the rows of {_named(failed)} of {len(self._logs)} were not written{there}: writing all of them again is "
            f"safe; {error}"
        )
        kind = LogFullError if isinstance(error, LogFullError) else ConnectionFailedError
        return kind(message)

    def _found_logs(self) -> list[Log]:
        if not self._logs:
            self._logs = logs(self._backend, self._stream_key)
        return self._logs

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
