"""The entries of a log that the history does not have yet, as one more file of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from quorin.engine.history import parquet as columns
from quorin.engine.history.counted import Commit
from quorin.engine.history.files import DataFile, file_name
from quorin.engine.log.record import Kind, decode, translate
from quorin.errors import InvalidEntryError
from quorin.schema import schema_from_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.backend import Backend
    from quorin.engine.backend.protocols import Log
    from quorin.engine.history.dataset import Loaded
    from quorin.schema import Schema


def with_tail(loaded: Loaded, schema: Schema, backend: Backend, stream_key: str, position: int) -> Loaded:
    """The history with the log's entries behind it, up to a position.

    Entries that were trimmed stay missing. Those that do not decode are left out, as they are when they are applied.
    """
    log, name = backend.log(stream_key), schema.__name__
    identity, bounds = log.state()
    if bounds.trimmed > loaded.through:
        return loaded
    stored = backend.control.schemas().get(name)
    beginning = backend.control.beginnings().get(name)
    is_of_this_log = beginning is not None and beginning.log_identity == identity
    first = beginning.position if beginning is not None and is_of_this_log else 0
    applied_as = schema if stored is None else schema_from_json(stored)
    # Entries behind the last one may still be appended, and get positions up to this one, within its millisecond.
    commits: list[Commit] = []
    tables = list(_rows(log, applied_as, max(first, loaded.through), position, commits))
    empty = columns.file_schema(applied_as).empty_table()
    table = pa.concat_tables([empty, *tables], promote_options="default")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    path = f"the log {stream_key} at {backend.address}: {file_name(loaded.through, position)}"
    counted = replace(loaded.counted, commits=(*loaded.counted.commits, *commits))
    return loaded.with_part(DataFile(loaded.through, position, path), sink.getvalue()).counting(counted)


def _rows(log: Log, schema: Schema, after: int, through: int, commits: list[Commit]) -> Iterator[pa.Table]:
    """The rows of a schema's entries in ``(after, through]``; ``commits`` gets the loads that are committed there."""
    while after < through:
        found = log.read(after, schema_names=[schema.__name__])
        for position, payload in found.entries:
            if position <= through:
                yield from _table(schema, position, payload, commits)
        if found.through <= after:
            return
        after = found.through


def _table(schema: Schema, position: int, payload: bytes, commits: list[Commit]) -> Iterator[pa.Table]:
    try:
        record = decode(payload)
        batch = translate(record, schema)
    except InvalidEntryError:
        return  # It is or becomes a dead letter.
    if record.kind is Kind.commit:
        commits.append(Commit(record.load, position))
    if len(batch):
        positions = pa.repeat(pa.scalar(position, pa.int64()), len(batch))
        kind = Kind.upsert if record.kind is Kind.load else record.kind
        yield columns.to_table(schema, batch, positions, kind, record.written_ns, load=record.load)
