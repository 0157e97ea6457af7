"""Neighbouring entries of the log that are applied as one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from quorin.engine.log.record import Kind
from quorin.engine.rows.column import number_array

if TYPE_CHECKING:
    from quorin.engine.log.record import Record
    from quorin.schema import Schema
    from quorin.shm import Segment

Entry = tuple[int, bytes]
"""A position and the record there."""

MAX_MERGED_ROWS = 8192


class Destination(Protocol):
    """A schema, and the segment that its rows are applied to."""

    @property
    def schema(self) -> Schema:
        """The schema of the segment's rows."""

    @property
    def opened(self) -> Segment:
        """The segment."""


class EntryRun:
    """Neighbouring entries of one schema, kind and load, to be applied as one batch.

    Without ``changes``, the segment has them already, and only the history takes them.
    """

    def __init__(self, *, changes: bool = True) -> None:
        self.target: Destination | None = None
        self.changes = changes
        self.kind = Kind.upsert
        self.load = 0
        self.entries: list[Entry] = []
        self.written_ns = 0
        self._record: Record | None = None
        self._batches: list[pa.RecordBatch] = []
        self._counts: list[int] = []
        self._rows = 0

    def takes(self, target: Destination, record: Record, batch: pa.RecordBatch) -> bool:
        """Whether entries can join the run: same schema, kind, load and columns, and not too many rows."""
        if self.target is None:
            return True
        same = self.target is target and self.kind is record.kind and self.load == record.load
        same = same and self._batches[0].schema.equals(batch.schema)
        return same and self._rows + batch.num_rows <= MAX_MERGED_ROWS

    def add(self, target: Destination, record: Record, batch: pa.RecordBatch, entries: list[Entry]) -> None:
        """Add an entry with its rows in ``batch``; or several entries of one row each, all rows in one batch.

        ``record`` is the entry, decoded; of several, one with all their rows.
        """
        self.target, self._record = target, record
        self.kind, self.written_ns, self.load = record.kind, record.written_ns, record.load
        self.entries += entries
        self._batches.append(batch)
        self._counts += [batch.num_rows] if len(entries) == 1 else [1] * len(entries)
        self._rows += batch.num_rows

    def merged(self) -> pa.RecordBatch:
        """All rows in the order of the log."""
        if len(self._batches) == 1:
            return self._batches[0]
        batches = pa.Table.from_batches(self._batches).combine_chunks().to_batches()
        return batches[0] if batches else self._batches[0]

    def row_positions(self) -> pa.Array:
        """The position of each row."""
        positions = np.array([position for position, _ in self.entries], np.int64)
        return number_array(np.repeat(positions, self._counts), pa.int64())

    def singles(self) -> list[EntryRun]:
        """The entries, each as a run of its own."""
        assert self.target is not None and self._record is not None  # noqa: S101, PT018 - a run with batches has both
        runs, merged, first = [], self.merged(), 0
        for count, entry in zip(self._counts, self.entries, strict=True):
            run = EntryRun(changes=self.changes)
            run.add(self.target, self._record, merged.slice(first, count), [entry])
            runs.append(run)
            first += count
        return runs
