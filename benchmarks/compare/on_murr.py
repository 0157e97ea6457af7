"""murr: columns in an embedded cache of files, read as Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from murr.schema import ColumnSchema, DType, TableSchema
from murr.sync import Murr

if TYPE_CHECKING:
    from benchmarks.compare.rival import Vector

TABLE = "rows"


class OnMurr:
    """An instance in the process, which is how its own documentation is quickest."""

    name = "murr read"

    def __init__(self, directory: Path, fields: Sequence[str]) -> None:
        self.fields = list(fields)
        self._cache = Murr.start_local(directory / "murr")
        columns = {"id": ColumnSchema(dtype=DType.UTF8, nullable=False)}
        columns |= {name: ColumnSchema(dtype=DType.FLOAT32) for name in fields}
        self._cache.create_table(TABLE, TableSchema(key="id", columns=columns))

    def fill(self, ids: Sequence[str], rows: Vector) -> None:
        """All in one batch."""
        columns = {name: pa.array(rows[:, number]) for number, name in enumerate(self.fields)}
        self._cache.write(TABLE, pa.record_batch({"id": pa.array(ids), **columns}))

    def read_many(self, ids: list[str]) -> pa.RecordBatch:
        """The columns of the fields, a row for each id."""
        return self._cache.read(TABLE, ids, self.fields)
