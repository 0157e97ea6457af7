"""The last values of entities: from the history, and from the log behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.history.point_in_time import by_entity_and_time, keys_of, taken
from quorin.engine.history.tail import Sources
from quorin.engine.log.record import Kind
from quorin.engine.rows.batch import ENTITY_ID, EVENT_TIME, fields_by_name
from quorin.engine.rows.intake import id_array
from quorin.engine.rows.partitions import partitions_of
from quorin.errors import InvalidRowError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quorin.engine.arrays import AnyArray, Mask
    from quorin.engine.backend import Connection
    from quorin.engine.history.dataset import Loaded
    from quorin.engine.history.point_in_time import Keys
    from quorin.engine.history.store import ParquetDatasetStore
    from quorin.schema import Schema

_Picked = list[tuple[int, list[int]]]
"""Event times of one entity, newest first, and for each field the row that it comes from, -1 for none."""


def last_values(
    schema: Schema,
    entity_ids: Any,
    n: int,
    *,
    store: ParquetDatasetStore | None = None,
    connection: Connection | None = None,
    fields: Sequence[str] | None = None,
    stream_key: str = DEFAULT_STREAM_KEY,
    namespace: str = DEFAULT_NAMESPACE,
) -> pa.Table:
    """The last ``n`` rows of each entity in the order of event times, newest first: of the history, of the log, or of
    both, which together have all rows as far as the log was trimmed behind that history.

    Columns: ``entity_id``, ``event_time_ns``, the fields. Ids come in the order of the request, each once; those
    without rows are left out. One event time is one row: of several rows with this time each field has the value of the
    one with the largest tie-breaker, if the schema has one, then of the last in the log. A field that no row of this
    time sets (rows may be partial) is null; a row that sets none of ``fields`` does not count. A deletion takes away
    all rows up to its event time, those that arrive later included. So the last values of one field are those that
    a field with ``history`` keeps in the segment.

    ``entity_ids`` are as for :func:`quorin.assembly.read`. Reads the keys of the whole history, and the values of the
    rows that are returned.

    :raises ValueError: for an ``n`` below 1, and without both a store and a connection.
    :raises InvalidRowError: for unknown fields. :raises EntityIdError: for an id that is empty, null or no text.
    :raises CorruptHistoryError, HistoryUnavailableError, ConnectionFailedError: if rows cannot be read.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n: expected a whole number of rows, 1 or more, got {n!r}")
    if store is None and connection is None:
        raise ValueError("expected a store, a connection, or both: there is nothing to read the rows from")
    known = fields_by_name(schema)
    names = list(known) if fields is None else list(fields)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidRowError(f"{schema.__name__} has no fields {unknown}; it has {list(known)}")
    ids = pc.unique(id_array(entity_ids).cast(pa.string()))
    place = connection, namespace, stream_key
    with Sources(schema, None, *place) if store is None else store.sources(schema, *place) as sources:

        def read(partition: int, own: pa.Array = ids) -> pa.Table:
            rows = sources.load(partition, ids=own)
            begins = _beginning(schema, sources, partition) if sources.has_log else 0
            return _table(schema, names, own, rows, _first_behind(rows, begins), int(n))

        return read(0) if sources.count == 1 or not len(ids) else _in_order(ids, sources.count, read)


def _in_order(ids: pa.Array, count: int, read: Callable[[int, pa.Array], pa.Table]) -> pa.Table:
    """The rows of ids, whose partitions are read one by one, in the order of the ids."""
    partitions = partitions_of(ids, count)
    found = pa.concat_tables(
        read(partition, ids.filter(pa.array(partitions == partition))) for partition in np.unique(partitions).tolist()
    )
    places = pc.index_in(found.column(ENTITY_ID), ids).to_numpy()
    return found.take(pa.array(np.argsort(places, kind="stable")))


def _first_behind(rows: Loaded, position: int) -> int:
    """The number of the first row behind a position."""
    count = 0
    for _, batch in rows.keys(["position"]) if position else ():
        count += int(np.searchsorted(batch.column(0).to_numpy(), position, side="right"))
    return count


def _beginning(schema: Schema, sources: Sources, partition: int) -> int:
    """The position up to which rows of a partition belong to a former schema of this name."""
    begins = 0
    for log, *_ in sources.logs(partition):
        beginning = sources.backend.control.beginnings(log.partition).get(schema.__name__)
        if beginning is not None and beginning.log_identity == log.identity():
            begins = beginning.position
    return begins


def _table(schema: Schema, names: list[str], ids: pa.Array, rows: Loaded, first: int, n: int) -> pa.Table:
    keys = keys_of(schema, rows, ids, replaced=True)
    sets = [np.array([name in named for name in names], np.bool_) for named in keys.field_sets]
    entities: list[int] = []
    picked: _Picked = []
    order = by_entity_and_time(keys) if len(keys.time) else keys.number
    order = order[keys.number[order] >= first]
    ends = np.searchsorted(keys.entity[order], np.arange(len(ids) + 1))
    for entity in range(len(ids)):
        found = _pick(order[ends[entity] : ends[entity + 1]], keys, sets, len(names), n)
        entities += [entity] * len(found)
        picked += found
    sources = np.array([chosen for _, chosen in picked], np.int64).reshape(len(picked), len(names))
    numbers = np.where(sources >= 0, keys.number[sources], -1) if len(picked) else sources
    needed = np.unique(numbers[numbers >= 0])
    values = rows.rows(needed, schema)
    found_columns = {
        ENTITY_ID: ids.take(pa.array(entities, pa.int64())),
        EVENT_TIME: pa.array([time for time, _ in picked], pa.int64()),
    }
    for index, name in enumerate(names):
        places = np.where(numbers[:, index] >= 0, np.searchsorted(needed, numbers[:, index]), -1)
        found_columns[name] = taken(values.column(name), places)
    return pa.table(found_columns)


def _pick(order: AnyArray, keys: Keys, sets: list[Mask], width: int, n: int) -> _Picked:
    """The last ``n`` event times of one entity, whose keys are in ``order``, that set a field."""
    everything = np.ones(width, np.bool_)
    picked: _Picked = []
    for row in order[::-1].tolist():
        kind, time = keys.kind[row], int(keys.time[row])
        if kind == Kind.delete:
            break
        mask = everything if kind == Kind.upsert else sets[keys.fields[row]]
        if not mask.any():
            continue
        if not picked or picked[-1][0] != time:
            if len(picked) == n:
                break
            picked.append((time, [-1] * width))
        chosen = picked[-1][1]
        for index in np.flatnonzero(mask).tolist():
            if chosen[index] < 0:
                chosen[index] = row
    return picked
