"""Which row was in force when: joins of times with the history, and how partial rows become whole.

The join is over the keys alone (an integer for each entity, event time, row number), in NumPy, which starts no threads
and so works in a forked process too. Arrow then takes the values of the chosen rows from the files, so their types stay
exact.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.history.counted import LOAD, order_of
from quorin.engine.history.parquet import column_name
from quorin.engine.log.record import Kind
from quorin.engine.rows.batch import ENTITY_ID, EVENT_TIME, time_column
from quorin.engine.rows.column import cast_entity_ids
from quorin.engine.rows.intake import table_columns
from quorin.engine.rows.value import check_event_time
from quorin.errors import InvalidRowError

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Bytes, Int32s, Int64s, Mask
    from quorin.engine.history.counted import Counted
    from quorin.engine.history.dataset import Loaded
    from quorin.schema import Schema

AS_OF = "as_of_time_ns"
_CODED_ROWS = 1 << 21
_TIE = "tie"
_ORDER, _UNCOUNTED = "order", -1
_LATEST_NS = 2**63 - 1
_EARLIEST_NS = -(2**63)


@dataclass(frozen=True)
class Queries:
    """Which entities are asked for, as of when, and from when on an answer counts (int64 nanoseconds each)."""

    ids: pa.Array
    times: Int64s
    earliest: Int64s | None

    @classmethod
    def of(cls, table: Any, lookback: Any) -> Queries:
        """Check what a caller asks. Columns other than ids and times are not looked at."""
        is_empty = isinstance(table, (list, tuple)) and not table
        columns = {ENTITY_ID: (), AS_OF: ()} if is_empty else table_columns(table)
        for name in (ENTITY_ID, AS_OF):
            if name not in columns:
                raise InvalidRowError(f"queries need the column {name!r}; they have {list(columns)}")
        ids = cast_entity_ids(columns[ENTITY_ID], None)
        times = time_column(columns[AS_OF], AS_OF).to_numpy()
        if len(ids) != len(times):
            raise InvalidRowError(f"queries have {len(ids)} entity ids and {len(times)} times")
        return cls(ids, times, None if lookback is None else _earliest(times, lookback))


@dataclass(frozen=True)
class Keys:
    """The history's rows of some entities in the order of the log, one array a part.

    ``entity`` (int32) numbers the entities, ``time`` (int64) is the event time, ``tie`` (int64) the tie-breaker, the
    least number where there is none, ``number`` (int64) the row's number in the history, ``kind`` (uint8) and
    ``fields`` (int32: which set of ``field_sets`` a partial row sets, else -1). ``position`` (int64) is empty unless it
    was asked for.
    """

    entity: Int32s
    time: Int64s
    tie: Int64s
    number: Int64s
    kind: Bytes
    fields: Int32s
    field_sets: list[frozenset[str]]
    position: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))

    def only(self, kept: Mask) -> Keys:
        """Some of the rows, in their order; they must have positions."""
        return Keys(
            self.entity[kept],
            self.time[kept],
            self.tie[kept],
            self.number[kept],
            self.kind[kept],
            self.fields[kept],
            self.field_sets,
            self.position[kept],
        )


def answer(schema: Schema, loaded: Loaded, asked: Queries, *, replaced: bool = False) -> pa.Table:
    """The row in force for each query, in the order of the queries, nulls where there is none; ``replaced`` leaves out
    what the last load has replaced.
    """
    entities = asked.ids.dictionary_encode()
    keys = keys_of(schema, loaded, entities.dictionary, replaced=replaced)
    chosen = _newest_at(keys, entities.indices.to_numpy(), asked.times)
    dead = (chosen >= 0) & (keys.kind[chosen] == Kind.delete) if len(keys.kind) else chosen >= 0
    chosen[dead] = -1
    if asked.earliest is not None and len(keys.time):
        chosen[(chosen >= 0) & (keys.time[chosen] < asked.earliest)] = -1
    columns = {ENTITY_ID: asked.ids, AS_OF: pa.array(asked.times)}
    columns[EVENT_TIME] = taken(pa.array(keys.time), chosen)
    return pa.table(columns | _field_values(schema, loaded, keys, chosen))


def latest(schema: Schema, loaded: Loaded, as_of_time_ns: int | None) -> pa.Table:
    """The row in force of every entity that has one."""
    as_of = _LATEST_NS if as_of_time_ns is None else check_event_time(as_of_time_ns)
    ids = loaded.entity_ids()
    asked = Queries(ids, np.full(len(ids), as_of, np.int64), None)
    found = answer(schema, loaded, asked, replaced=as_of_time_ns is None)
    return found.filter(pc.is_valid(found.column(EVENT_TIME))).drop_columns(AS_OF)


def keys_of(
    schema: Schema, loaded: Loaded, ids: pa.Array, *, replaced: bool = False, with_positions: bool = False
) -> Keys:
    """The keys of all rows of these entities that count; the place of an id in ``ids`` is its number. Positions are
    those that rows count at.
    """
    names = ["entity_id", "event_time", "kind"] + (["partial_fields"] if loaded.has_partial_rows else [])
    names += ["position"] if with_positions else []
    all_count = loaded.counts_all
    tie = None if schema.tie_breaker is None else column_name(schema.tie_breaker)
    parts: list[tuple[Any, ...]] = []
    waiting: list[pa.RecordBatch] = []
    base, rows = 0, 0
    read = list(dict.fromkeys([*names, *([] if tie is None else [tie]), *([] if all_count else ["position", LOAD])]))
    for first, batch in loaded.keys(read):
        taken = batch.select(names) if tie is None else _with_ties(batch, names, tie)
        waiting.append(taken if all_count else _with_orders(taken, batch, loaded.counted, replaced=replaced))
        rows = first + len(batch)
        if rows - base >= _CODED_ROWS:
            parts.append(_coded(waiting, base, ids))
            waiting, base = [], rows
    if waiting:
        parts.append(_coded(waiting, base, ids))
    if not parts:
        codes, longs = np.zeros(0, np.int32), np.zeros(0, np.int64)
        return Keys(codes, longs, longs, longs, np.zeros(0, np.uint8), codes, [])
    entity, time, ties, number, kind, position = (np.concatenate([part[i] for part in parts]) for i in range(6))
    partial = pa.chunked_array([part[6] for part in parts]).combine_chunks()
    if not all_count:
        # Rows of a load come before what was logged since it began, as in the segment.
        orders = np.concatenate([part[7] for part in parts])
        order = np.flatnonzero(orders != _UNCOUNTED)
        order = order[np.argsort(orders[order], kind="stable")]
        entity, time, ties, number, kind = (each[order] for each in (entity, time, ties, number, kind))
        position = orders[order] if with_positions else position
        partial = _one(partial).take(pa.array(order))
    fields = partial.dictionary_encode()
    if isinstance(fields, pa.ChunkedArray):
        fields = fields.combine_chunks()
    codes = fields.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    sets = [frozenset(text.split(",")) if text else frozenset() for text in fields.dictionary.to_pylist()]
    return Keys(entity, time, ties, number, kind, codes, sets, position)


def _with_ties(batch: pa.RecordBatch, names: list[str], tie: str) -> pa.RecordBatch:
    """The named columns and then the tie-breaker as it counts, which a file of an older version may lack."""
    known = tie in batch.schema.names
    ties = batch.column(tie).cast(pa.int64()).fill_null(_EARLIEST_NS) if known else _no_ties(len(batch))
    return pa.RecordBatch.from_arrays([*(batch.column(name) for name in names), ties], [*names, _TIE])


def _with_orders(batch: pa.RecordBatch, rows: pa.RecordBatch, counted: Counted, *, replaced: bool) -> pa.RecordBatch:
    """A batch with one column more: the position that each of its rows counts at, if it does."""
    orders = np.where(counted.mask(rows, replaced=replaced), order_of(rows), _UNCOUNTED)
    return pa.RecordBatch.from_arrays([*batch.columns, pa.array(orders)], [*batch.schema.names, _ORDER])


def _no_ties(count: int) -> pa.Array:
    return pa.array(np.full(count, _EARLIEST_NS, np.int64))


def _coded(batches: list[pa.RecordBatch], base: int, ids: pa.Array) -> tuple[Any, ...]:
    table = pa.Table.from_batches(batches)
    codes = _one(pc.index_in(table.column("entity_id"), value_set=ids))
    kept = codes.is_valid().to_numpy(zero_copy_only=False)
    partial = (
        _one(table.column("partial_fields")).filter(pa.array(kept))
        if "partial_fields" in table.schema.names
        else pa.nulls(int(kept.sum()), pa.string())
    )
    ties = table.column(_TIE) if _TIE in table.schema.names else _no_ties(len(table))
    return (
        codes.drop_null().to_numpy(),
        table.column("event_time").cast(pa.int64()).to_numpy()[kept],
        ties.to_numpy()[kept],
        np.flatnonzero(kept) + base,
        table.column("kind").to_numpy()[kept],
        table.column("position").to_numpy()[kept] if "position" in table.schema.names else np.zeros(0, np.int64),
        partial,
        table.column(_ORDER).to_numpy()[kept] if _ORDER in table.schema.names else None,
    )


def _newest_at(keys: Keys, entity: AnyArray, times: Int64s) -> Int64s:
    """For each query the index in ``keys`` of the newest row at or before its time, -1 if there is none.

    Of rows with one event time the one with the largest tie-breaker, then the last in the log.
    """
    if not len(keys.time) or not len(times):
        return np.full(len(times), -1, np.int64)
    order = by_entity_and_time(keys)
    counts = np.bincount(keys.entity, minlength=int(entity.max()) + 1)
    last = last_of_group(keys.time[order], np.cumsum(counts) - counts, counts, entity, times)
    return np.where(last >= 0, order[last], -1)


def last_of_group(values: Int64s, starts: Int64s, counts: Int64s, group: AnyArray, most: Int64s) -> Int64s:
    """For each query the index of the last of its group's values that is at most ``most``, -1 if there is none.

    The values of a group lie together in ascending order. A binary search for all queries at once.
    """
    first = starts[group]
    low, end = first, first + counts[group]
    for _ in range(int(counts.max()).bit_length()):
        middle = (low + end) >> 1
        is_within = (low < end) & (values[np.minimum(middle, len(values) - 1)] <= most)
        low = np.where(is_within, middle + 1, low)
        end = np.where(is_within, end, middle)
    return np.where(low > first, low - 1, -1)


def by_entity_and_time(keys: Keys) -> Int64s:
    """The indices of all keys sorted by entity, then event time, tie-breaker, and the order of the log."""
    has_ties = keys.tie.max() > _EARLIEST_NS
    order = np.lexsort((keys.tie, keys.time)) if has_ties else np.argsort(keys.time, kind="stable")
    return by_entity(keys, order)


def by_entity(keys: Keys, order: Int64s) -> Int64s:
    """Indices of keys sorted by entity; those of one entity stay in their order."""
    # NumPy sorts 16-bit numbers by radix: two such passes are several times quicker than one over 32 bits.
    for shift in (0, 16) if keys.entity.max() >> 16 else (0,):
        digits = (keys.entity[order] >> shift).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
    return order


def _field_values(schema: Schema, loaded: Loaded, keys: Keys, chosen: Int64s) -> dict[str, pa.ChunkedArray]:
    """The fields of the chosen rows: indices in ``keys``, -1 for none."""
    sources: dict[str, Int64s] = {}
    known = chosen >= 0
    if len(keys.kind) and (keys.kind[chosen[known]] == Kind.partial).any():
        sources = _merged_sources(schema, keys, chosen)
    return values_from(schema, loaded, keys, chosen, sources)


def values_from(
    schema: Schema, loaded: Loaded, keys: Keys, chosen: Int64s, sources: dict[str, Int64s]
) -> dict[str, pa.ChunkedArray]:
    """The values of each field from the rows that ``sources`` names, else from the ``chosen`` ones."""
    fields = schema.fields if sources else schema.fields[:1]
    rows = {
        field.name: np.where(index >= 0, keys.number[index], -1) if len(keys.number) else index
        for field in fields
        for index in [sources.get(field.name, chosen)]
    }
    if not sources:  # All fields come from the same rows.
        rows = dict.fromkeys((field.name for field in schema.fields), next(iter(rows.values())))
    needed = np.unique(np.concatenate(list(rows.values()) if sources else [next(iter(rows.values()))]))
    needed = needed[needed >= 0]
    values = loaded.rows(needed, schema)
    distinct = {id(row): row for row in rows.values()}
    places = {key: _indices(np.where(row >= 0, np.searchsorted(needed, row), -1)) for key, row in distinct.items()}
    return {name: values.column(name).take(places[id(row)]) for name, row in rows.items()}


def _merged_sources(schema: Schema, keys: Keys, chosen: Int64s) -> dict[str, Int64s]:
    """For every field, the index in ``keys`` of the row that its value comes from, -1 for null.

    A partial row is applied to the newest row that the entity had then, at or before its event time, and takes over
    what it does not set: the rule of the segment's writer, so that what was served and what is read here agree.
    """
    names = [field.name for field in schema.fields]
    sets = [np.array([name in chosen_set for name in names]) for chosen_set in keys.field_sets]
    sources = np.repeat(chosen[:, None], len(names), axis=1)
    wanted = np.flatnonzero((chosen >= 0) & (keys.kind[chosen] == Kind.partial))
    entities = np.unique(keys.entity[chosen[wanted]])
    of_interest = np.flatnonzero(np.isin(keys.entity, entities))
    of_interest = of_interest[np.argsort(keys.entity[of_interest], kind="stable")]
    starts = np.searchsorted(keys.entity[of_interest], entities, side="left")
    needed = set(chosen[wanted].tolist())
    merged: dict[int, Any] = {}
    for rows in np.split(of_interest, starts[1:]):
        _merge_entity(rows, keys, sets, needed, merged)
    for query in wanted.tolist():
        sources[query] = merged[int(chosen[query])]
    return {name: np.ascontiguousarray(sources[:, i]) for i, name in enumerate(names)}


def _merge_entity(rows: Int64s, keys: Keys, sets: list[AnyArray], needed: set[int], merged: dict[int, Any]) -> None:
    """Apply one entity's rows in the order of the log; note in ``merged`` where the needed ones' fields come from."""
    times: list[tuple[int, int]] = []
    states: list[Any] = []
    order = zip(keys.time[rows].tolist(), keys.tie[rows].tolist(), strict=True)
    for row, time, kind in zip(rows.tolist(), order, keys.kind[rows].tolist(), strict=True):
        place = bisect_right(times, time)
        state: Any = row if kind == Kind.upsert else -1
        if kind == Kind.partial:
            before = states[place - 1] if place else -1
            state = np.where(sets[keys.fields[row]], row, before)
            if row in needed:
                merged[row] = state
        times.insert(place, time)
        states.insert(place, state)


def taken(values: pa.Array | pa.ChunkedArray, places: Int64s) -> pa.Array | pa.ChunkedArray:
    """Values by place; null for -1."""
    return values.take(_indices(places))


def _indices(places: Int64s) -> pa.Array:
    return pa.array(places, mask=places < 0)


def _earliest(times: Int64s, lookback: Any) -> Int64s:
    """The oldest event time that counts for each query."""
    if isinstance(lookback, timedelta):
        lookback = (lookback.days * 86_400 + lookback.seconds) * 10**9 + lookback.microseconds * 1000
    given = pa.array([lookback], pa.int64()) if isinstance(lookback, int) else _lookbacks(lookback)
    if len(given) not in (1, len(times)):
        raise InvalidRowError(f"lookback has {len(given)} values for {len(times)} queries")
    if (pc.min(given).as_py() or 0) < 0:
        raise InvalidRowError(f"lookback must not be negative, got {pc.min(given).as_py()}")
    spans = np.broadcast_to(given.fill_null(_LATEST_NS).to_numpy(), times.shape)
    return np.where(times < _EARLIEST_NS + spans, _EARLIEST_NS, times - np.where(spans < 0, 0, spans))


def _lookbacks(lookback: Any) -> pa.Array:
    values = lookback if isinstance(lookback, (pa.Array, pa.ChunkedArray)) else pa.array(lookback, from_pandas=True)
    values = _one(values)
    if pa.types.is_duration(values.type):
        values = values.cast(pa.duration("ns"))
    return values.cast(pa.int64())


def _one(column: Any) -> pa.Array:
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(combined, pa.ChunkedArray):
        return combined.chunk(0) if combined.num_chunks else pa.array([], combined.type)
    return combined
