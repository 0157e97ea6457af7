"""The history's store: append rows, read them as of any time, and compact files."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.history import parquet as columns
from quorin.engine.history.as_of import AsOf, read_at
from quorin.engine.history.counted import Commit
from quorin.engine.history.dataset import Dataset, Loaded, Part
from quorin.engine.history.files import file_name, mergeable, superseded
from quorin.engine.history.storage import Storage, VanishedError
from quorin.engine.log.record import Kind
from quorin.engine.rows.column import numbers
from quorin.errors import HistoryUnavailableError
from quorin.schema import Schema, fingerprint

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from datetime import timedelta

_ATTEMPTS = 5
_MERGED_ROWS = 4_000_000
_GATHERED_BYTES = 64 << 20
_Result = TypeVar("_Result")


class ParquetDatasetStore:
    """The history of any number of schemas below ``base``: a directory, or a URL that ``pyarrow.fs`` supports
    (``file://``, ``s3://``, ``gs://``, ...); with ``filesystem``, a path in that filesystem.

    It is append-only: each flush writes one file per schema, in a folder for the day, named by its log positions.
    Rows that are appended again (a consumer rereads the log after a crash) are recognized by their positions and
    skipped, so each row of the log is in the history once. A crash loses rows that were appended but not flushed;
    the log still has them.

    Reads skip damaged and foreign files, and log an error that names the file; with ``strict`` they raise
    :class:`CorruptHistoryError` instead.

    One process at a time writes a schema, the one that holds its segment's writer lease; any number may read. Threads
    may share a store. Pickling stores its base and filesystem, access keys included, in plain text, but no unflushed
    rows.

    ``compression`` is Parquet's (``zstd``, ``lz4``, ``snappy``, ``gzip``, ``brotli`` or ``none``). Float columns that
    it hardly shrinks, such as embeddings, stay uncompressed.

    :raises HistoryUnavailableError: for a URL that pyarrow does not support; from all methods, if the files are
        unavailable.
    """

    def __init__(
        self, base: str | os.PathLike[str], *, compression: str = "zstd", filesystem: Any = None, strict: bool = False
    ) -> None:
        self._storage = Storage(base, filesystem)
        self._compression = compression
        self._strict = strict
        self._begin()

    def _begin(self) -> None:
        self._buffers: dict[str, _Buffer] = {}
        self._lock = threading.RLock()
        self._reported: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_buffers", "_lock", "_reported")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __enter__(self) -> ParquetDatasetStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ParquetDatasetStore {self.address}>"

    @property
    def address(self) -> str:
        """The base without keys or passwords."""
        return self._storage.address

    def exists(self) -> bool:
        """Whether the directory exists; the first flush creates it. In an object store: whether it has objects."""
        return self._storage.exists()

    def append(
        self, schema: Schema, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert, load: int = 0
    ) -> None:
        """Append rows in canonical form; ``positions`` (int64, non-decreasing) holds the log position of each row.

        Rows at positions that were appended before are skipped. Pass all rows of one position in one call. Rows of a
        ``load`` count from its :meth:`commit_load` on.
        """
        if not batch.num_rows:
            return
        with self._lock:
            buffer = self._buffer(schema)
            first = int(np.searchsorted(numbers(positions, np.int64), buffer.last, side="right"))
            if first < batch.num_rows:
                if fingerprint(buffer.schema) != fingerprint(schema):
                    self._flush(buffer)
                    buffer.schema = schema
                kept, places = batch.slice(first), positions.slice(first)
                buffer.tables.append(columns.to_table(schema, kept, places, Kind(kind), time.time_ns(), load=load))
                buffer.last = places[-1].as_py()

    def commit_load(self, schema: Schema, load: int, position: int) -> None:
        """Record durably that a load was committed at a log position: its rows, and what was logged since it began,
        replace all earlier ones in reads of the present state. Call it before rows behind that position are appended.
        """
        with self._lock:
            self._flush(self._buffer(schema))
            self._dataset(schema).commit(Commit(load, position))

    def prepare(self) -> None:
        """Create the directory of a local history now, rather than with the first flush.

        :raises HistoryUnavailableError: if it is not writable.
        """
        self._storage.prepare()

    def flush(self) -> None:
        """Make all appended rows durable: one file for each schema with new rows.

        A crash before it returns leaves each schema's rows either all durable or none of them.
        """
        with self._lock:
            for buffer in self._buffers.values():
                self._flush(buffer)

    def close(self) -> None:
        """Flush. The store remains usable."""
        self.flush()

    def flushed_position(self, schema: Schema) -> int:
        """The log position up to which a schema's rows are durable, from any writer; 0 if there are none."""
        files = self._dataset(schema).listing().files
        durable = max((file.through for file in files), default=0)
        with self._lock:
            buffer = self._buffers.get(schema.__name__)
            if buffer is not None:
                if durable > buffer.last:
                    # Another writer is further on. A file of what is here must not claim its rows.
                    self._flush(buffer)
                buffer.last = max(buffer.last, durable)
                if not buffer.tables:
                    buffer.start = buffer.last
        return durable

    def skip_to(self, schema: Schema, position: int) -> None:
        """Record durably that a schema has no rows between the durable ones and a log position.

        Log entries up to that position are then never appended.
        """
        with self._lock:
            buffer = self._buffer(schema)
            self._flush(buffer)
            if position > buffer.start:
                self._write(schema, buffer.start, position, columns.file_schema(schema).empty_table())
                buffer.start = buffer.last = position

    def read_point_in_time(
        self, schema: Schema, queries: Any, *, lookback: int | timedelta | Any | None = None
    ) -> pa.Table:
        """Point-in-time read: for each query, the newest row at or before its time.

        ``queries`` is a table of any kind that :func:`quorin.layout.insert_many` takes, with ``entity_id`` and
        ``as_of_time_ns`` (int64 nanoseconds, timestamps or dates); other columns are ignored. Between equal event times
        the larger tie-breaker wins, if the schema has one, then the later log position. ``lookback`` (nanoseconds or a
        timedelta; one for all, or one per query, with null for none) excludes older rows.

        Returns one row per query, in order: ``entity_id``, ``as_of_time_ns``, ``event_time_ns``, the fields. All but
        the first two are null if there is no row, or the entity was deleted. A partial row is merged with the row that
        it was applied to.

        :raises InvalidRowError, EntityIdError: for queries that lack a column, or have an invalid or null id or time;
            the text names the row.
        """
        from quorin.engine.history.point_in_time import Queries, answer

        asked = Queries.of(queries, lookback)
        return self._reading(schema, lambda: answer(schema, self.load(schema), asked))

    def latest_features(self, schema: Schema, *, as_of_time_ns: int | None = None) -> pa.Table:
        """The newest row of every entity that is not deleted, optionally at or before a time.

        Without a time it is the present state: nothing from before the last load that replaced the schema's rows. With
        one, rows count by event time, as in :meth:`read_point_in_time`, whatever has replaced them later.

        Columns: ``entity_id``, ``event_time_ns``, the fields.
        """
        from quorin.engine.history.point_in_time import latest

        return self._reading(schema, lambda: latest(schema, self.load(schema), as_of_time_ns))

    def read_at(
        self,
        schema: Schema,
        ids: Any,
        *,
        position: int | None = None,
        time_ns: int | None = None,
        connection: Any = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> pa.Table:
        """What reads returned when a log position was applied, or at a time: see :func:`quorin.offline.read_at`."""
        asked = AsOf(position, time_ns, connection, namespace)
        history = partial(self.load, schema)
        return self._reading(schema, lambda: read_at(schema, asked.with_log(schema, history), ids, asked))

    def distinct_entity_ids(self, schema: Schema) -> pa.Array:
        """All distinct ids in the history, deleted ones included, in order of first appearance."""
        return self._reading(schema, lambda: self.load(schema).entity_ids())

    def newest_first(self, schema: Schema) -> Iterator[tuple[Kind, pa.RecordBatch, pa.Array]]:
        """All rows as canonical batches of one kind, with their positions, for ``quorin.layout.apply_batch``.

        Files come newest first, so that few rows are written twice; with partial rows, which depend on earlier rows, in
        log order. Applying all of them reproduces the rows as they were served.
        """
        loaded = self._dataset(schema).load()
        yield from loaded.batches(schema, newest_first=not loaded.has_partial_rows)

    def load(self, schema: Schema) -> Loaded:
        """A schema's files in force, with their footers read."""
        return self._dataset(schema).load()

    def compact(self, schema: Schema) -> int:
        """Merge small files of each day into few large ones; return by how many files there are fewer.

        Reads continue meanwhile. A crash at any point loses and duplicates nothing: once a merged file has its name, it
        is in force and its parts are not. Unfinished files of crashed writers are removed after an hour.
        """
        dataset = self._dataset(schema)
        before = len(dataset.listing().files)
        _compact(dataset, self._storage, self._compression)
        return before - len(dataset.listing().files)

    def _flush(self, buffer: _Buffer) -> None:
        if not buffer.tables:
            return
        # Rows of loads have a column more than the others.
        table = pa.concat_tables(buffer.tables, promote_options="default")
        self._write(buffer.schema, buffer.start, buffer.last_taken, table)
        buffer.start, buffer.tables = buffer.last_taken, []

    def _write(self, schema: Schema, after: int, through: int, table: pa.Table) -> None:
        day = datetime.now(UTC).strftime("day=%Y-%m-%d")
        options = columns.writer_options(table, self._compression)
        rows = columns.row_group_rows(table.nbytes, len(table))

        def fill(sink: Any) -> None:
            with pq.ParquetWriter(sink, table.schema, **options) as writer:
                writer.write_table(table, rows)

        self._storage.write(self._storage.folder(schema.__name__, day, file_name(after, through)), fill)

    def _buffer(self, schema: Schema) -> _Buffer:
        buffer = self._buffers.get(schema.__name__)
        if buffer is None:
            buffer = self._buffers[schema.__name__] = _Buffer(schema, self.flushed_position(schema))
        return buffer

    def _dataset(self, schema: Schema) -> Dataset:
        return Dataset(self._storage, schema.__name__, strict=self._strict, reported=self._reported)

    def _reading(self, schema: Schema, read: Callable[[], _Result]) -> _Result:
        """Read, and retry if a compaction removed files meanwhile."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(VanishedError):
                return read()
        raise HistoryUnavailableError(f"files of {schema.__name__!r} at {self._storage.address} vanished in every read")


class _Buffer:
    """A schema's rows that are not durable yet: all that the log holds in ``(start, last_taken]``."""

    def __init__(self, schema: Schema, durable: int) -> None:
        self.schema = schema
        self.start = durable
        self.last = durable
        self.tables: list[pa.Table] = []

    @property
    def last_taken(self) -> int:
        """The position of the last appended row; :attr:`last` may be greater, if others made more rows durable."""
        last: int = self.tables[-1].column("position")[-1].as_py()
        return last


def _compact(dataset: Dataset, storage: Storage, compression: str) -> None:
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


def _merge(storage: Storage, compression: str, loaded: Loaded, parts: list[Part]) -> None:
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


def _of_one_schema(parts: list[Part]) -> Iterator[list[Part]]:
    """Runs of adjacent parts with the same columns."""
    run: list[Part] = []
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
