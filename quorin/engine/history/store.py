"""The history's store: append rows, read them as of any time, and compact files."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.history import parquet as columns
from quorin.engine.history.as_of import AsOf, read_at
from quorin.engine.history.completeness import Recorder
from quorin.engine.history.counted import Commit
from quorin.engine.history.datasets import Datasets, write_rows
from quorin.engine.history.folders import Folders
from quorin.engine.history.storage import Storage
from quorin.engine.history.tail import Sources
from quorin.engine.log.record import Kind
from quorin.engine.log.token import Token
from quorin.engine.rows.column import numbers
from quorin.schema import Schema, fingerprint

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta

    from quorin.engine.history.dataset import Loaded

_OF_THE_PROCESS = ("_buffers", "_lock", "_recorder", "_writing")


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
    rows. The history of several partitions is written through :meth:`of_partition`, for each apart; reads take all of
    them. ``partitions`` says how many there are, by default what the history has.

    ``compression`` is Parquet's (``zstd``, ``lz4``, ``snappy``, ``gzip``, ``brotli`` or ``none``). Float columns that
    it hardly shrinks, such as embeddings, stay uncompressed.
    :raises HistoryUnavailableError: for a URL that pyarrow does not support; by all methods, for unavailable files.
    """

    flushes_concurrently = True

    def __init__(
        self,
        base: str | os.PathLike[str],
        *,
        compression: str = "zstd",
        filesystem: Any = None,
        strict: bool = False,
        partitions: int | None = None,
    ) -> None:
        self._folders = Folders(Storage(base, filesystem), partitions)
        self._compression = compression
        self._datasets = Datasets(self._folders, strict=strict)
        self._begin()

    def _begin(self) -> None:
        self._buffers: dict[str, _Buffer] = {}
        # Of the files and of the buffers, to be taken in this order: rows are appended while earlier ones are written.
        self._writing, self._lock = threading.RLock(), threading.RLock()
        self._recorder = Recorder(self._folders.to_write, self._datasets.last_position)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THE_PROCESS}

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
        return self._folders.base.address

    def of_partition(self, partition: int, count: int) -> ParquetDatasetStore:
        """The history of one partition of ``count``, to write. :raises PartitionCountError: if this is of another."""
        if count == 1 and self._folders.partition is None and self._folders.is_of_one:
            return self
        folders, store = self._folders.of_partition(partition, count), object.__new__(type(self))
        datasets = self._datasets.in_folders(folders)
        store.__setstate__({**self.__getstate__(), "_folders": folders, "_datasets": datasets})
        return store

    def exists(self) -> bool:
        """Whether the directory exists; the first flush creates it. In an object store: whether it has objects."""
        return self._folders.base.exists()

    def append(
        self, schema: Schema, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert, load: int = 0
    ) -> None:
        """Append rows in canonical form; ``positions`` (int64, non-decreasing) holds the log position of each row.

        Rows at positions that were appended before are skipped. Pass all rows of one position in one call. Rows of a
        ``load`` count from its :meth:`commit_load` on.
        """
        if not batch.num_rows:
            return
        while True:
            with self._lock:
                buffer = self._buffer(schema)
                first = int(np.searchsorted(numbers(positions, np.int64), buffer.last, side="right"))
                if first == batch.num_rows:
                    return
                if not buffer.tables or fingerprint(buffer.schema) == fingerprint(schema):
                    kept, places = batch.slice(first), positions.slice(first)
                    buffer.tables.append(columns.to_table(schema, kept, places, Kind(kind), time.time_ns(), load=load))
                    buffer.schema, buffer.last = schema, places[-1].as_py()
                    return
            self._flush(buffer)

    def commit_load(self, schema: Schema, load: int, position: int) -> None:
        """Record durably that a load was committed at a log position: its rows, and what was logged since it began,
        replace all earlier ones in reads of the present state. Call it before rows behind that position are appended.
        """
        with self._writing, self._lock:
            self._flush(self._buffer(schema))
            self._datasets.only(schema.__name__).commit(Commit(load, position))

    def record_complete(self, schemas: Iterable[Schema], position: int) -> None:
        """Record durably that of these schemas all rows up to a log position are durable here: reads of the past then
        know that there are none behind a schema's last file, although the log is trimmed.
        """
        with self._writing:
            starts = {buffer.schema.__name__: buffer.start for buffer in list(self._buffers.values())}
            self._recorder.record(position, {schema.__name__: starts.get(schema.__name__) for schema in schemas})

    def prepare(self) -> None:
        """Create the directory of a local history now. :raises HistoryUnavailableError: if it is not writable."""
        self._folders.base.prepare()

    def flush(self) -> None:
        """Make all appended rows durable: one file for each schema with new rows.

        A crash before it returns leaves all of a schema's rows durable or none. Other threads may append meanwhile.
        """
        for buffer in list(self._buffers.values()):
            self._flush(buffer)

    def close(self) -> None:
        """Flush. The store remains usable."""
        self.flush()

    def flushed_position(self, schema: Schema) -> int:
        """The log position up to which a schema's rows are durable, from any writer; 0 if there are none."""
        durable = self._datasets.last_position(schema.__name__)
        buffer = self._buffers.get(schema.__name__)
        if buffer is not None and durable > buffer.last:
            with self._writing, self._lock:
                # Another writer is further on. A file of what is here must not claim its rows.
                self._flush(buffer)
                buffer.last = max(buffer.last, durable)
        with self._lock:
            if buffer is not None and not buffer.tables:
                buffer.start = buffer.last
        return durable

    def skip_to(self, schema: Schema, position: int) -> None:
        """Record durably that a schema has no rows between the durable ones and a log position.

        Log entries up to that position are then never appended.
        """
        with self._writing, self._lock:
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

        asked, name = Queries.of(queries, lookback), schema.__name__
        return self._datasets.reading(name, lambda: answer(schema, self._datasets.load(name), asked))

    def latest_features(self, schema: Schema, *, as_of_time_ns: int | None = None) -> pa.Table:
        """The newest row of every entity that is not deleted: ``entity_id``, ``event_time_ns``, the fields.

        Without a time it is the present state: nothing from before the last load that replaced the schema's rows. With
        one, rows count by event time, as in :meth:`read_point_in_time`, whatever has replaced them later.
        """
        from quorin.engine.history.point_in_time import latest

        name = schema.__name__
        return self._datasets.reading(name, lambda: latest(schema, self._datasets.load(name), as_of_time_ns))

    def read_at(
        self,
        schema: Schema,
        ids: Any,
        *,
        position: int | Token | str | None = None,
        time_ns: int | None = None,
        connection: Any = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> pa.Table:
        """What reads returned at a position, a token or a time: see :func:`quorin.offline.read_at`."""
        asked, name = AsOf(Token.of(position) if isinstance(position, str) else position, time_ns), schema.__name__
        with self.sources(schema, connection, namespace) as sources:
            return self._datasets.reading(name, lambda: read_at(sources, ids, asked))

    def sources(self, schema: Schema, connection: Any = None, *names: str) -> Sources:
        """Where the rows of a schema are: here, and, with a connection (and its namespace and log), behind that."""
        return Sources(schema, self._datasets, connection, *names)

    def distinct_entity_ids(self, schema: Schema) -> pa.Array:
        """All distinct ids in the history, deleted ones included, in order of first appearance."""
        return self._datasets.reading(schema.__name__, lambda: self._datasets.load(schema.__name__).entity_ids())

    def newest_first(self, schema: Schema) -> Iterator[tuple[Kind, pa.RecordBatch, pa.Array]]:
        """All rows as canonical batches of one kind, with their positions, for ``quorin.layout.apply_batch``.

        Files come newest first, so that few rows are written twice; with partial rows, which depend on earlier rows, in
        log order. Applying all of them reproduces the rows as they were served.
        """
        for loaded in self._datasets.each(schema.__name__):
            yield from loaded.batches(schema, newest_first=not loaded.has_partial_rows)

    def load(self, schema: Schema) -> Loaded:
        """A schema's files in force, with footers read. :raises PartitionedError: if there are several folders."""
        return self._datasets.only(schema.__name__).load()

    def compact(self, schema: Schema) -> int:
        """Merge small files of each day into few large ones; return by how many files there are fewer.

        Reads continue meanwhile. A crash at any point loses and duplicates nothing: once a merged file has its name, it
        is in force and its parts are not. Unfinished files of crashed writers are removed after an hour.
        """
        return self._datasets.compact(schema.__name__, self._compression)

    def _flush(self, buffer: _Buffer) -> None:
        with self._writing:
            buffer.flush(self._lock, self._write)

    def _write(self, schema: Schema, after: int, through: int, table: pa.Table) -> None:
        write_rows(self._folders.to_write(), self._compression, schema, after, through, table)

    def _buffer(self, schema: Schema) -> _Buffer:
        buffer = self._buffers.get(schema.__name__)
        if buffer is None:
            buffer = self._buffers[schema.__name__] = _Buffer(schema, self.flushed_position(schema))
        return buffer


class _Buffer:
    """A schema's rows that are not durable yet: all that the log holds behind ``start``, up to that of the last table.
    ``last`` may be greater, if others made more rows durable.
    """

    def __init__(self, schema: Schema, durable: int) -> None:
        self.schema = schema
        self.start = durable
        self.last = durable
        self.tables: list[pa.Table] = []

    def flush(self, lock: threading.RLock, write: Callable[[Schema, int, int, pa.Table], None]) -> None:
        """Write the rows; ``lock`` is that of the buffer, and is not held meanwhile."""
        with lock:
            schema, start, tables = self.schema, self.start, list(self.tables)
        if not tables:
            return
        through: int = tables[-1].column("position")[-1].as_py()
        # Rows of loads have a column more than the others.
        write(schema, start, through, pa.concat_tables(tables, promote_options="default"))
        with lock:
            # Only now: after a failure they are written by the next flush. More may have been appended meanwhile.
            del self.tables[: len(tables)]
            self.start = through
