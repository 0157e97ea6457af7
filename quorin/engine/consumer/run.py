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

MAX_MERGED_ROWS = 8192


class Destination(Protocol):
    """A schema, and the segment that its rows are applied to."""

    @property
    def schema(self) -> Schema:
        """The schema of the segment's rows."""

    @property
    def opened(self) -> Segment:
        """The segment."""


class Run:
    """Neighbouring entries of one schema, kind and load, to be applied as one batch.

    Without ``changes``, the segment has them already, and only the history takes them.
    """

    def __init__(self, *, changes: bool = True) -> None:
        self.target: Destination | None = None
        self.changes = changes
        self.kind = Kind.upsert
        self.load = 0
        self.positions: list[int] = []
        self.payloads: list[bytes] = []
        self.written_ns = 0
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

    def add(
        self,
        target: Destination,
        kind: Kind,
        batch: pa.RecordBatch,
        positions: list[int],
        payloads: list[bytes],
        written_ns: int,
        load: int = 0,
    ) -> None:
        """Add an entry; or several entries of one row each, with one batch of all their rows."""
        self.target, self.kind, self.written_ns, self.load = target, kind, written_ns, load
        self.positions += positions
        self.payloads += payloads
        self._batches.append(batch)
        self._counts += [batch.num_rows] if len(positions) == 1 else [1] * len(positions)
        self._rows += batch.num_rows

    def merged(self) -> pa.RecordBatch:
        """All rows in the order of the log."""
        if len(self._batches) == 1:
            return self._batches[0]
        batches = pa.Table.from_batches(self._batches).combine_chunks().to_batches()
        return batches[0] if batches else self._batches[0]

    def row_positions(self) -> pa.Array:
        """The position of each row."""
        return number_array(np.repeat(np.array(self.positions, np.int64), self._counts), pa.int64())

    def singles(self) -> list[Run]:
        """The entries one by one."""
        runs, merged, first = [], self.merged(), 0
        for count, position, payload in zip(self._counts, self.positions, self.payloads, strict=True):
            run = Run(changes=self.changes)
            assert self.target is not None  # noqa: S101 - a run with batches has a target
            rows = merged.slice(first, count)
            run.add(self.target, self.kind, rows, [position], [payload], self.written_ns, self.load)
            runs.append(run)
            first += count
        return runs
