"""The history of a schema and the log's entries behind it, as one: the entries are one more file of it, in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
    from quorin.schema import Schema


def history_and_log(
    schema: Schema,
    history: Callable[[], Loaded] | None,
    backend: Backend,
    stream_key: str,
    *,
    through: int | None = None,
    ids: pa.Array | None = None,
) -> Loaded:
    """The rows of a schema up to a position, by default the log's end: from the history, which is read by calling
    ``history``, and from the log what it has behind that; ``ids`` leaves out other entities' rows in the log.

    Entries that were trimmed before they were in the history stay missing. Those that do not decode are left out, as
    they are when they are applied.
    """
    log, before = backend.log(stream_key), -1
    while True:
        loaded = Loaded(Storage(".", None), [], []) if history is None else history()
        last = log.bounds().last if through is None else through
        tables = list(_rows(log, schema, backend, loaded.through, last, ids))
        # What was trimmed since the history was read is in a newer history.
        after = max(loaded.through, log.bounds().trimmed)
        if after == loaded.through or loaded.through == before or history is None:
            break
        before = loaded.through
    if after >= last:
        return loaded
    commits = _commits(log, schema, [commit for _, _, commit in tables if commit is not None], last)
    counted = replace(loaded.counted, commits=(*loaded.counted.commits, *commits))
    rows = [table for position, table, _ in tables if position > after]
    table = pa.concat_tables([columns.file_schema(schema).empty_table(), *rows], promote_options="default")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    # Entries behind the last one may still be appended, and get positions up to `last`, within its millisecond.
    path = f"the log {stream_key} at {backend.address}: {file_name(after, last)}"
    return loaded.with_part(DataFile(after, last, path), sink.getvalue()).counting(counted)


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
    beginning = backend.control.beginnings().get(name)
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
