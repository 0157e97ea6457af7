"""Merge small files of a history into few large ones, while reads go on."""

from __future__ import annotations

import contextlib
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from quorin.engine.history import parquet as columns
from quorin.engine.history.files import file_name, mergeable, superseded
from quorin.engine.history.storage import VanishedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from quorin.engine.history.dataset import Dataset, HistoryFile, Loaded
    from quorin.engine.history.storage import Storage

_MERGED_ROWS = 4_000_000
_GATHERED_BYTES = 64 << 20


def compact(dataset: Dataset, storage: Storage, compression: str) -> None:
    """Merge what can be merged, and remove what is merged, and what crashed writers left."""
    loaded = dataset.load()
    for neighbours in _of_one_schema(loaded.parts):
        rows = [part.row_count for part in neighbours]
        for run in mergeable([part.piece for part in neighbours], rows, most_rows=_MERGED_ROWS):
            _merge(storage, compression, loaded, [part for part in neighbours if part.piece in run])
    listing = dataset.listing()
    damaged = {file.path for file in loaded.damaged}
    for file in superseded(file for file in listing.files if file.path not in damaged):
        storage.remove(file.path)
    for path in listing.leftovers:
        storage.remove(path)


def _merge(storage: Storage, compression: str, loaded: Loaded, parts: list[HistoryFile]) -> None:
    """Write the rows of adjacent parts as one file with exactly their range."""
    first, last = parts[0], parts[-1]
    path = f"{first.piece.file.day}/{file_name(first.piece.beyond, last.piece.file.through)}"
    if path in {part.piece.file.path for part in parts}:
        return

    def fill(sink: Any) -> None:
        tables = _gathered(batch for part in parts for batch in loaded.raw_batches(part))
        begin = next(tables, first.arrow_schema.empty_table())
        options = columns.writer_options(begin, compression)
        with pq.ParquetWriter(sink, first.arrow_schema, **options) as writer:
            for table in chain([begin], tables):
                writer.write_table(table, columns.row_group_rows(table.nbytes, len(table)))

    with contextlib.suppress(VanishedError):  # Another process compacts as well.
        storage.write(path, fill)


def _of_one_schema(parts: list[HistoryFile]) -> Iterator[list[HistoryFile]]:
    """Runs of adjacent parts with the same columns."""
    run: list[HistoryFile] = []
    for part in parts:
        if run and not run[-1].arrow_schema.equals(part.arrow_schema):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches combined into tables large enough for good row groups."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(item.nbytes for item in waiting) >= _GATHERED_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
