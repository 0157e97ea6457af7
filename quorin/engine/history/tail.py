"""The history of a schema and the log's entries behind it, as one: the entries are one more file of it, in memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from quorin.engine.backend import connect
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.format.growth import Growth
from quorin.engine.history import parquet as columns
from quorin.engine.history.counted import Commit
from quorin.engine.history.dataset import Loaded
from quorin.engine.history.files import DataFile, file_name
from quorin.engine.history.storage import Storage
from quorin.engine.log.record import Kind, decode, is_of_load, load_of, peek, translate
from quorin.errors import InvalidEntryError
from quorin.schema import schema_from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from quorin.engine.backend import Backend, Log
    from quorin.engine.history.datasets import Datasets
    from quorin.schema import Schema


class Sources:
    """Where the rows of a schema are: in a history, in the log behind it, or in both; for each partition by itself.

    A deployment that grew has rows of a partition also in the histories and logs of those that it was a part of. They
    come first: all of their positions are below those that followed. To be closed, as a context manager.
    """

    def __init__(
        self,
        schema: Schema,
        datasets: Datasets | None,
        connection: Any,
        namespace: str = DEFAULT_NAMESPACE,
        stream_key: str = DEFAULT_STREAM_KEY,
    ) -> None:
        self.schema = schema
        self._datasets = datasets
        self._connection = getattr(connection, "backend", connection)
        self._namespace = namespace
        self._stream_key = stream_key
        self._opened = ExitStack()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def has_log(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    @cached_property
    def backend(self) -> Backend:
        """The deployment, connected to at the first use.

        :raises ConnectionFailedError: if it cannot be reached.
        """
        backend = connect(self._connection, namespace=self._namespace)
        if backend is not self._connection:
            self._opened.callback(backend.close)
        return backend

    @cached_property
    def stored_count(self) -> int:
        """The number of partitions that the history is of."""
        return 1 if self._datasets is None else self._datasets.partition_count

    @cached_property
    def count(self) -> int:
        """The number of partitions, of the deployment if there is a connection: as it is now, as it may have grown."""
        deployed = self.backend.control.partition_count() if self.has_log else None
        return max(self.stored_count, deployed or 1)

    def stored(self, partition: int = 0, count: int = 1) -> Loaded:
        """What the history has of a partition."""
        if self._datasets is None:
            return Loaded(Storage(".", None), [], [])
        return self._datasets.load_partition(self.schema.__name__, partition, count)

    def load(self, partition: int, *, through: int | None = None, ids: pa.Array | None = None) -> Loaded:
        """The rows of a partition up to a position, by default the end of its log: from the history, and from the log
        what it has behind that; ``ids`` leaves out other entities' rows in the log.

        Entries that were trimmed before they were in the history stay missing. Those that do not decode are left out,
        as they are when they are applied.
        """
        if not self.has_log:
            return self.stored(partition, self.count)
        history: Callable[[], Loaded] | None = None
        *former, last = self.logs(partition)
        for one in former:
            end = one.log.bounds().last
            end = end if through is None else min(end, through)
            history = partial(_with_log, self.schema, self._behind(history, one), self.backend, one, end, ids)
        return _with_log(self.schema, self._behind(history, last), self.backend, last, through, ids)

    def _behind(self, before: Callable[[], Loaded] | None, one: LogFrom) -> Callable[[], Loaded] | None:
        """What reads the history of a log, behind what was before the log."""
        datasets, name = self._datasets, self.schema.__name__
        if datasets is None:
            return before
        stored = partial(datasets.load_partition, name, one.log.partition, one.partitions, above=one.above)
        return stored if before is None else lambda: before().followed_by(stored())

    def logs(self, partition: int) -> list[LogFrom]:
        """The log of a partition, behind those of the partitions that it was a part of."""
        if self.count == 1:
            return [LogFrom(self.backend.log(self._stream_key), 1, 0, 0)]
        former = {one.count: one for one in Growth.parse(self.backend.control.growth()).former}
        begins = {2 * count: one.end + 1 for count, one in former.items()}
        counts = [*(count for count in former if count < self.count), self.count]
        log = partial(self.backend.log, self._stream_key)
        return [
            LogFrom(log(partition * one // self.count, of=one), one, above, begins.get(one, 0))
            for above, one in pairwise([0, *counts])
        ]


class LogFrom(NamedTuple):
    """A log of one of so many ``partitions``, of which there were ``above`` before (0: none), and the position behind
    which its entries begin: 0, or the end of the logs that it followed.
    """

    log: Log
    partitions: int
    above: int
    begins: int


def _with_log(
    schema: Schema,
    history: Callable[[], Loaded] | None,
    backend: Backend,
    of: LogFrom,
    through: int | None,
    ids: pa.Array | None,
) -> Loaded:
    log, before = of.log, (-1, -1)
    while True:
        loaded = Loaded(Storage(".", None), [], []) if history is None else history()
        last = log.bounds().last if through is None else through
        tables = list(_rows(log, schema, backend, loaded.through, last, ids))
        # What was trimmed since the history was read is in a newer history.
        trimmed = log.bounds().trimmed
        after = max(loaded.through, trimmed if trimmed > of.begins else 0)
        if after <= loaded.complete:
            after = loaded.through
        if after == loaded.through or (loaded.through, loaded.complete) == before or history is None:
            break
        before = loaded.through, loaded.complete
    if after >= last:
        return loaded
    commits = _commits(log, schema, [commit for _, _, commit in tables if commit is not None], last)
    counted = replace(loaded.counted, commits=(*loaded.counted.commits, *commits))
    rows = [table for position, table, _ in tables if position > after]
    table = pa.concat_tables([columns.file_schema(schema).empty_table(), *rows], promote_options="default")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    # Entries behind the last one may still be appended, and get positions up to `last`, within its millisecond.
    begins = loaded.file_through if after == loaded.through else after
    path = f"the log {log.stream_key} at {backend.address}: {file_name(begins, last)}"
    return loaded.with_part(DataFile(begins, last, path), sink.getvalue()).counting(counted)


def commits_in(log: Log, name: str, after: int, through: int) -> list[Commit]:
    """The commits in ``(after, through]`` of loads that begin there too: the first of each load, if no abort of it and
    no beginning of a later one comes before, and the log has all of its rows.
    """
    commits: list[Commit] = []
    load, rows = 0, 0
    for position, payload in _entries(log, name, after, through):
        if not is_of_load(payload):
            continue
        try:
            header, (of_load, all_rows) = peek(payload), load_of(payload)
        except InvalidEntryError:
            continue
        if header.kind is Kind.begin:
            if of_load > load:
                load, rows = of_load, 0
        elif of_load == load and header.kind is Kind.load:
            rows += header.row_count
        elif of_load == load and load:
            if header.kind is Kind.commit and rows == all_rows:
                commits.append(Commit(load, position))
            load = 0
    return commits


def _commits(log: Log, schema: Schema, recorded: list[Commit], through: int) -> list[Commit]:
    """Which of the commits that were found in the log count."""
    if not recorded:
        return []
    first = min(commit.begin for commit in recorded) - 1
    return [commit for commit in commits_in(log, schema.__name__, first, through) if commit in recorded]


def _rows(
    log: Log, schema: Schema, backend: Backend, after: int, through: int, ids: pa.Array | None
) -> Iterator[tuple[int, pa.Table, Commit | None]]:
    """The entries of a schema in ``(after, through]``: position, rows as in a file, and the commit that it records."""
    name = schema.__name__
    beginning = backend.control.beginnings(log.partition).get(name)
    if beginning is not None and beginning.log_identity == log.identity():
        after = max(after, beginning.position)
    stored = backend.control.schemas().get(name)
    applied_as = schema if stored is None else schema_from_json(stored)
    for position, payload in _entries(log, name, after, through):
        try:
            record = decode(payload)
            batch = translate(record, applied_as)
        except InvalidEntryError:
            continue  # It is or becomes a dead letter.
        if ids is not None:
            batch = batch.filter(pc.is_in(batch.column(0), value_set=ids))
        commit = Commit(record.load, position) if record.kind is Kind.commit else None
        if len(batch) or commit is not None:
            positions = pa.repeat(pa.scalar(position, pa.int64()), len(batch))
            kind = Kind.upsert if record.kind is Kind.load else record.kind
            table = columns.to_table(applied_as, batch, positions, kind, record.written_ns, load=record.load)
            yield position, table, commit


def _entries(log: Log, name: str, after: int, through: int) -> Iterator[tuple[int, bytes]]:
    while after < through:
        found = log.read(after, schema_names=[name])
        yield from (entry for entry in found.entries if entry[0] <= through)
        if found.through <= after:
            return
        after = found.through
