"""The files of one schema: list, open, and read them in log order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from quorin import metrics
from quorin.engine.history import parquet as columns
from quorin.engine.history.counted import COMMITS, LOAD, Commit, Counted, commits_of, loads_of
from quorin.engine.history.files import DataFile, Piece, in_force
from quorin.engine.history.rewritten import restored, restored_schema, with_fields
from quorin.engine.history.storage import Listing, Storage, VanishedError, decoded
from quorin.engine.log.record import Kind
from quorin.engine.rows.column import numbers
from quorin.errors import CorruptHistoryError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from quorin.engine.arrays import AnyArray
    from quorin.engine.history.counted import Step
    from quorin.schema import Schema

BATCH_ROWS = 65_536
LEAST_BATCH_ROWS = 1024
BATCH_BYTES = 8 << 20

_log = get_logger(__name__)


class Dataset:
    """The folder of one schema."""

    def __init__(self, storage: Storage, name: str, *, strict: bool, reported: set[str]) -> None:
        self._storage = storage
        self._name = name
        self._strict = strict
        self._reported = reported

    def listing(self) -> Listing:
        """All files. Foreign files are reported once."""
        found = self._storage.listing(self._storage.folder(self._name))
        for path in found.foreign:
            self._refuse(path, "its name is none of a history's: <after>-<through>.parquet, 20 digits each")
        return found

    def commits(self) -> tuple[Commit, ...]:
        """The committed loads, in the order of the log."""
        return commits_of(info.path for info in self._storage.files(self._storage.folder(self._name, COMMITS)))

    def commit(self, commit: Commit) -> None:
        """Record a commit; all rows of its load are durable."""
        path = self._storage.folder(self._name, COMMITS, commit.file_name)
        self._storage.write(path, lambda sink: sink.write(b"\n"))

    def load(self) -> Loaded:
        """Read the footers of the files in force; skip damaged files, or raise if strict."""
        metadata, damaged = {}, []
        listing, commits = self._consistent()
        for file in listing.files:
            try:
                metadata[file] = self._footer(file)
            except VanishedError:
                continue
            except CorruptHistoryError as error:
                damaged.append(file)
                self._refuse(file.path, str(error))
        pieces = in_force(metadata)
        parts = [self._part(piece, metadata[piece.file]) for piece in pieces]
        return Loaded(self._storage, parts, damaged, Counted(commits))

    def _consistent(self) -> tuple[Listing, tuple[Commit, ...]]:
        """All files and commits of one moment: a commit that is written while files are listed has rows that the list
        may lack.
        """
        before = self.commits()
        while True:
            listing, after = self.listing(), self.commits()
            if after == before:
                return listing, after
            before = after

    def check(self, file: DataFile) -> int:
        """How many rows a file has, if reads take it, as far as its footer tells.

        :raises CorruptHistoryError: if it is no whole Parquet file, or has other columns or types.
        :raises HistoryUnavailableError: if it cannot be read now.
        :raises VanishedError: if it is gone.
        """
        metadata = self._footer(file)
        restored_schema(file.path, metadata.schema.to_arrow_schema())
        return int(metadata.num_rows)

    def _footer(self, file: DataFile) -> pq.FileMetaData:
        def read(source: pa.NativeFile) -> Iterator[pq.FileMetaData]:
            yield pq.read_metadata(source)

        (found,) = decoded(self._storage, file.path, read, "is no whole Parquet file")
        columns.check_columns(file.path, found.schema.to_arrow_schema())
        return found

    def _part(self, piece: Piece, metadata: pq.FileMetaData) -> HistoryFile:
        written = metadata.schema.to_arrow_schema()
        own = restored_schema(piece.file.path, written)
        # Tools that rewrite files drop this metadata, and a compaction of such files has none to keep.
        is_rewritten = not own.equals(written) or columns.SCHEMA_METADATA not in (written.metadata or {})
        part = HistoryFile(piece, metadata, own, is_rewritten, 0)
        if piece.beyond <= piece.file.after:
            return part

        def read(source: pa.NativeFile) -> Iterator[pa.Table]:
            yield _parquet(part, source).read(columns=["position"])

        (table,) = decoded(self._storage, piece.file.path, read, "is damaged")
        positions = np.concatenate([part.restored(batch)["position"].to_numpy() for batch in table.to_batches()])
        return replace(part, first=int(np.searchsorted(positions, piece.beyond, side="right")))

    def _refuse(self, path: str, reason: str) -> None:
        if self._strict:
            raise CorruptHistoryError(f"{path}: {reason}")
        if path not in self._reported:
            self._reported.add(path)
            metrics.history_files_skipped.labels(self._name).inc()
            _log.error("history_file_skipped", path=path, reason=reason)


@dataclass(frozen=True)
class HistoryFile:
    """A file in force, from row ``first`` on. ``arrow_schema`` has the types that its columns are read as; in a file
    that another tool rewrote, the stored types differ.
    """

    piece: Piece
    metadata: pq.FileMetaData
    arrow_schema: pa.Schema
    is_rewritten: bool
    first: int

    @property
    def row_count(self) -> int:
        """The number of its rows in force."""
        return int(self.metadata.num_rows) - self.first

    @cached_property
    def first_position(self) -> int:
        """The position of its first row in force, or a lower one that no row before has."""
        if self.first or not self.metadata.num_rows:
            return self.piece.beyond + 1
        index = self.metadata.schema.names.index("position")
        statistics = self.metadata.row_group(0).column(index).statistics
        known = statistics is not None and statistics.has_min_max
        return int(statistics.min) if known else self.piece.beyond + 1

    @cached_property
    def batch_rows(self) -> int:
        """The number of rows to decode at a time: some megabytes."""
        groups = [self.metadata.row_group(group) for group in range(self.metadata.num_row_groups)]
        size: int = sum(group.total_byte_size for group in groups) // max(1, int(self.metadata.num_rows))
        return max(LEAST_BATCH_ROWS, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))

    def restored(self, rows: pa.RecordBatch, schema: Schema | None = None) -> pa.RecordBatch:
        """Rows of the file with the types of a history, and of the schema's fields if given."""
        if not self.is_rewritten:
            return rows
        rows = restored(self.piece.file.path, rows, self.arrow_schema)
        return rows if schema is None else with_fields(schema, self.piece.file.path, rows)

    @cached_property
    def has_partial_rows(self) -> bool:
        """Whether any of its rows sets only some fields."""
        index = next(i for i in range(self.metadata.num_columns) if self.metadata.schema.column(i).path == "kind")
        groups = (self.metadata.row_group(i).column(index) for i in range(self.metadata.num_row_groups))
        return any(
            group.statistics is None or not group.statistics.has_min_max or group.statistics.max == Kind.partial
            for group in groups
        )


class Loaded:
    """One schema's history: ``parts`` in log order, each position in exactly one of them; ``counted`` says which rows
    count. Up to the position ``complete`` there are none behind the files, as far as the history has recorded it.
    """

    def __init__(
        self,
        storage: Storage,
        parts: list[HistoryFile],
        damaged: list[DataFile],
        counted: Counted | None = None,
        complete: int = 0,
    ) -> None:
        self._storage = storage
        self.parts = parts
        self.damaged = damaged
        self.counted = Counted() if counted is None else counted
        self.complete = complete

    @classmethod
    def union(cls, storage: Storage, partitions: Sequence[Loaded]) -> Loaded:
        """The histories of all partitions, one behind the other, of which the same loads count. An entity's rows are
        all in one of them, in the order of its log, or in one of each number of partitions that there was, in that
        order.
        """
        if len(partitions) == 1:
            return partitions[0]
        parts, damaged = chain(*(one.parts for one in partitions)), chain(*(one.damaged for one in partitions))
        return cls(storage, list(parts), list(damaged), partitions[0].counted if partitions else None)

    def followed_by(self, other: Loaded) -> Loaded:
        """This history and one of later positions, without files in memory, as one."""
        commits = (*self.counted.commits, *other.counted.commits)
        parts, damaged = [*self.parts, *other.parts], [*self.damaged, *other.damaged]
        return Loaded(self._storage, parts, damaged, Counted(commits))

    def counting(self, counted: Counted) -> Loaded:
        """This history, with ``counted`` to say which of its rows count."""
        return Loaded(self._storage, self.parts, self.damaged, counted, self.complete)

    def completed(self, position: int) -> Loaded:
        """This history, of which it is known that no rows are missing up to a position."""
        return Loaded(self._storage, self.parts, self.damaged, self.counted, position)

    @property
    def counts_all(self) -> bool:
        """Whether every row counts, and none was replaced."""
        return self.counted == Counted() and not any(LOAD in part.arrow_schema.names for part in self.parts)

    @property
    def row_count(self) -> int:
        """The number of rows in force."""
        return sum(part.row_count for part in self.parts)

    @property
    def through(self) -> int:
        """The log position up to which the history has all rows; 0 without files."""
        return max([self.file_through, *(commit.position for commit in self.counted.commits)])

    @property
    def file_through(self) -> int:
        """The last log position of the files."""
        return max((part.piece.file.through for part in self.parts), default=0)

    @property
    def has_partial_rows(self) -> bool:
        """Whether any row sets only some fields."""
        return any(part.has_partial_rows for part in self.parts)

    def lacks(self, field: str) -> bool:
        """Whether a file was written by a schema without this field."""
        return any(columns.column_name(field) not in part.arrow_schema.names for part in self.parts)

    def lost_through(self, field: str, as_of: AnyArray | int) -> AnyArray:
        """The last position whose row had lost its value of a field when the log was at a position: if a schema loses a
        field and gets it again, earlier rows have no value.
        """
        without = [part for part in self.parts if columns.column_name(field) not in part.arrow_schema.names]
        through = np.array([0, *(part.piece.file.through for part in without)], np.int64)
        return through[np.searchsorted([part.first_position for part in without], as_of, side="right")]

    def with_part(self, file: DataFile, content: pa.Buffer) -> Loaded:
        """This history with one more file behind the others, which is only in memory."""
        metadata = pq.read_metadata(pa.BufferReader(content))
        part = HistoryFile(Piece(file, file.after), metadata, metadata.schema.to_arrow_schema(), False, 0)
        storage, parts = self._storage.with_file(file.path, content), [*self.parts, part]
        return Loaded(storage, parts, self.damaged, self.counted, self.complete)

    def entity_ids(self) -> pa.Array:
        """Every id once, in order of first appearance."""
        known: pa.Array = pa.array([], pa.string())
        pending: list[pa.Array] = []
        all_count = self.counts_all
        for _, batch in self.keys(["entity_id"] if all_count else ["entity_id", "position", LOAD]):
            counted = None if all_count else pa.array(self.counted.mask(batch, replaced=False))
            pending.append(batch.column(0) if counted is None else batch.column(0).filter(counted))
            if sum(map(len, pending)) > max(1 << 20, len(known)):
                known, pending = pc.unique(pa.chunked_array([known, *pending])), []
        return pc.unique(pa.chunked_array([known, *pending])) if pending else known

    def keys(self, names: Sequence[str], *, use_threads: bool = True) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Columns of all rows in log order, with the number of each batch's first row."""
        number = 0
        for part in self.parts:
            for batch in self.raw_batches(part, names, use_threads=use_threads):
                yield number, batch
                number += len(batch)

    def raw_batches(
        self,
        part: HistoryFile,
        names: Sequence[str] | None = None,
        *,
        schema: Schema | None = None,
        use_threads: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a part in force, unconverted; all columns, or the named ones."""
        groups, skip = _groups_from(part)
        chosen = list(names) if names else None

        def read(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
            yield from _parquet(part, source).iter_batches(part.batch_rows, groups, chosen, use_threads=use_threads)

        for batch in decoded(self._storage, part.piece.file.path, read, "is damaged"):
            left = batch.slice(min(skip, len(batch)))
            skip -= len(batch) - len(left)
            if len(left):
                yield part.restored(left, schema)

    def rows(self, numbers: AnyArray, schema: Schema) -> pa.Table:
        """The rows with these numbers (sorted, unique) in canonical form; unset fields of partial rows are null."""
        found, base = [], 0
        for part in self.parts:
            low, high = np.searchsorted(numbers, [base, base + part.row_count])
            if high > low:
                local = numbers[low:high] - base + part.first
                found += list(self._taken(part, local, schema))
            base += part.row_count
        if not found:
            empty = pa.RecordBatch.from_pylist([], columns.file_schema(schema))
            found = [columns.canonical(schema, "", empty, Kind.upsert, None)]
        return pa.Table.from_batches(found)

    def batches(
        self, schema: Schema, *, newest_first: bool, after: int = 0, replaced: bool = True
    ) -> Iterator[tuple[Kind, pa.RecordBatch, pa.Array]]:
        """The rows that count, beyond position ``after``, in canonical form, in batches of one kind, with the positions
        that they count at. Without ``replaced`` also those that a later load has replaced.
        """
        steps = self.counted.steps(after, replaced=replaced)
        lost = {
            columns.column_name(field.name): self.lost_through(field.name, self.through)
            for field in schema.fields
            if self.lacks(field.name)
        }
        for step in reversed(steps) if newest_first else steps:
            for part in reversed(self.parts) if newest_first else self.parts:
                through = part.piece.file.through
                if through > step.low and part.piece.beyond < step.high:
                    fields = columns.field_columns(schema, part.arrow_schema)
                    kept = [name for name in fields if through > lost.get(name, 0)]
                    yield from self._step(step, part, schema, kept)

    def _step(
        self, step: Step, part: HistoryFile, schema: Schema, fields: list[str]
    ) -> Iterator[tuple[Kind, pa.RecordBatch, pa.Array]]:
        has_loads = LOAD in part.arrow_schema.names
        if step.load and not has_loads:
            return
        names = [*columns.KEY_COLUMNS, *fields]
        for batch in self.raw_batches(part, [*names, LOAD] if has_loads else names, schema=schema):
            first, last = np.searchsorted(numbers(batch.column("position"), np.int64), step[1:], side="right").tolist()
            kept = batch.slice(first, last - first)
            if has_loads:
                kept = kept.filter(pa.array(loads_of(kept) == step.load))
            for kind, rows, positions in columns.split(schema, part.piece.file.path, kept):
                yield kind, rows, pa.repeat(step.load, len(rows)) if step.load else positions

    def _taken(self, part: HistoryFile, local: AnyArray, schema: Schema) -> Iterator[pa.RecordBatch]:
        """Rows of a file by number, one row group at a time."""
        path = part.piece.file.path
        names = ["entity_id", "event_time", *columns.field_columns(schema, part.arrow_schema)]
        starts = np.cumsum(
            [0, *(part.metadata.row_group(group).num_rows for group in range(part.metadata.num_row_groups))]
        )
        edges = np.searchsorted(local, starts)
        needed = np.flatnonzero(np.diff(edges)).tolist()

        def read(source: pa.NativeFile) -> Iterator[pa.Table]:
            file = _parquet(part, source)
            return (file.read_row_group(group, names) for group in needed)

        tables = decoded(self._storage, path, read, "is damaged")
        for group, table in zip(needed, tables, strict=True):
            rows = local[edges[group] : edges[group + 1]] - starts[group]
            for batch in table.take(pa.array(rows)).combine_chunks().to_batches():
                yield columns.canonical(schema, path, part.restored(batch, schema), Kind.upsert, None)


def _groups_from(part: HistoryFile) -> tuple[list[int], int]:
    """The row groups with rows in force, and the number of rows to skip in the first of them."""
    counts = [part.metadata.row_group(group).num_rows for group in range(part.metadata.num_row_groups)]
    ends = np.cumsum([0, *counts])
    first = int(np.searchsorted(ends[1:], part.first, side="right"))
    return list(range(first, len(counts))), part.first - int(ends[first])


def _parquet(part: HistoryFile, source: pa.NativeFile) -> pq.ParquetFile:
    return pq.ParquetFile(source, metadata=part.metadata, page_checksum_verification=True)
