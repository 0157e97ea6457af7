"""Neighbouring entries of the log that are applied as one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from quorin.engine.log.record import Kind

if TYPE_CHECKING:
    from quorin.engine.consumer.target import Target

MAX_MERGED_ROWS = 8192


class Run:
    """Neighbouring entries of one schema and kind, to be applied as one batch."""

    def __init__(self) -> None:
        self.target: Target | None = None
        self.kind = Kind.upsert
        self.positions: list[int] = []
        self.payloads: list[bytes] = []
        self.written_ns = 0
        self._batches: list[pa.RecordBatch] = []
        self._counts: list[int] = []
        self._rows = 0

    def takes(self, target: Target, kind: Kind, batch: pa.RecordBatch) -> bool:
        """Whether entries can join the run: same schema, kind and columns, and not too many rows."""
        if self.target is None:
            return True
        same = self.target is target and self.kind is kind and self._batches[0].schema.equals(batch.schema)
        return same and self._rows + batch.num_rows <= MAX_MERGED_ROWS

    def add(
        self,
        target: Target,
        kind: Kind,
        batch: pa.RecordBatch,
        positions: list[int],
        payloads: list[bytes],
        written_ns: int,
    ) -> None:
        """Add an entry; or several entries of one row each, with one batch of all their rows."""
        self.target, self.kind, self.written_ns = target, kind, written_ns
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
        return pa.array(np.repeat(np.array(self.positions, np.int64), self._counts))

    def singles(self) -> list[Run]:
        """The entries one by one."""
        runs, merged, first = [], self.merged(), 0
        for count, position, payload in zip(self._counts, self.positions, self.payloads, strict=True):
            run = Run()
            assert self.target is not None  # noqa: S101 - a run with batches has a target
            run.add(self.target, self.kind, merged.slice(first, count), [position], [payload], self.written_ns)
            runs.append(run)
            first += count
        return runs
