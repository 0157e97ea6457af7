"""What was served, again: rows of a served log with the values that the history has at their positions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.format.ring import PRESENT
from quorin.engine.history.as_of import States, missing, position_after, whole_of
from quorin.engine.log.record import Kind
from quorin.engine.rows.column import numbers
from quorin.engine.rows.partitions import by_partition
from quorin.engine.served.description import Description, ServedView
from quorin.engine.served.files import READ_SCHEMA, ServedFiles
from quorin.errors import CorruptHistoryError, InvalidRowError
from quorin.schema import FeatureField, Schema, dtype, make_schema

if TYPE_CHECKING:
    from quorin.engine.arrays import Mask
    from quorin.engine.history.dataset import Loaded
    from quorin.engine.history.store import ParquetDatasetStore

KNOWN = "known"
OUTDATED = 2
"""The status of a feature that was served as null because of its age; others have the state of their row."""

ShowProgress = Callable[[int, int], Any]


@dataclass(frozen=True)
class Choice:
    """Which requests to read: of a time (nanoseconds, from ``since`` to before ``until``), with certain ids, or of
    certain views; and whether to return the event times of their rows and statuses.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    request_ids: Collection[str] | None = None
    views: Callable[[tuple[ServedView, ...]], bool] | None = None
    with_statuses: bool = False

    def of(self, rows: pa.Table) -> pa.Table:
        """The chosen rows of a file."""
        times = rows.column("time").cast(pa.int64())
        if self.since_ns is not None:
            rows = rows.filter(pc.greater_equal(times, self.since_ns))
        if self.until_ns is not None:
            rows = rows.filter(pc.less(rows.column("time").cast(pa.int64()), self.until_ns))
        if self.request_ids is not None:
            rows = rows.filter(pc.is_in(rows.column("request_id"), pa.array(list(self.request_ids), pa.string())))
        return rows


def read_log(files: ServedFiles, choice: Choice, progress: ShowProgress | None) -> pa.Table:
    """The chosen rows of all files, with numbers of requests that are unique across files."""
    tables, base = [READ_SCHEMA.empty_table()], 0
    paths = files.paths()
    for number, path in enumerate(paths):
        rows = files.read(path)
        count = (pc.max(rows.column("request")).as_py() or 0) + 1
        shifted = pc.add(rows.column("request"), base)
        tables.append(choice.of(rows.set_column(0, READ_SCHEMA.field("request"), shifted)))
        base += count
        if progress is not None:
            progress(number + 1, len(paths))
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def replayed(rows: pa.Table, choice: Choice, history: ParquetDatasetStore, connection: Any, namespace: str) -> pa.Table:
    """Rows of :func:`read_log` with their values, one for each row of a request."""
    described = rows.column("description").combine_chunks()
    texts = [*described.dictionary.to_pylist(), None] if len(rows) else []
    kinds = described.indices.fill_null(len(texts) - 1).to_numpy() if len(rows) else np.zeros(0, np.int32)
    rows = rows.drop_columns("description")
    tables = [
        _of_kind(_only(rows, kinds == kind), views, choice, history, connection, namespace)
        for kind in np.flatnonzero(np.bincount(kinds)).tolist()
        for views in [() if texts[kind] is None else Description.from_json(texts[kind]).views]
        if choice.views is None or choice.views(views)
    ]
    if not tables:
        return pa.table({"request_id": pa.array([], pa.string()), KNOWN: pa.array([], pa.bool_())})
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InvalidRowError(f"requests have features of one name and several types, choose fewer: {error}") from error
    order = pc.sort_indices(table, [("request", "ascending"), ("row", "ascending")])
    return table.take(order) if len(tables) > 1 else table


def _only(rows: pa.Table, chosen: Mask) -> pa.Table:
    return rows if chosen.all() else rows.take(pa.array(np.flatnonzero(chosen)))


def _of_kind(
    own: pa.Table,
    views: tuple[ServedView, ...],
    choice: Choice,
    history: ParquetDatasetStore,
    connection: Any,
    namespace: str,
) -> pa.Table:
    """The rows of one kind of requests, those of which the description is lost if there are no views."""
    if not views:
        return own.select(["request", "request_id", "time", "row"]).append_column(KNOWN, pa.repeat(False, len(own)))
    if len(own) % len(views):
        raise CorruptHistoryError(f"served log: {len(own)} rows of requests for {len(views)} views")
    of_view = (
        [own]
        if len(views) == 1
        else [own.take(pa.array(np.arange(i, len(own), len(views)))) for i in range(len(views))]
    )
    first = of_view[0]
    columns: dict[str, Any] = {name: first.column(name) for name in ("request", "request_id", "time", "row")}
    known = np.ones(len(first), np.bool_)
    has_one_key = len({view.group for view in views}) == 1
    for view, seen in zip(views, of_view, strict=True):
        values, statuses, is_known = _values(view, seen, history, connection, namespace)
        known &= is_known
        columns["entity_id" if has_one_key else f"entity_id:{view.name}"] = seen.column("entity_id")
        at = numbers(seen.column("position").combine_chunks(), np.int64)
        columns[f"log_position:{view.name}"] = pa.array(at, mask=at == 0)
        if choice.with_statuses:
            columns[f"event_time_ns:{view.name}"] = pc.if_else(pa.array(at == 0), None, seen.column("event_time"))
            columns |= {f"status:{name}": status for name, status in statuses.items()}
        columns |= values
    return pa.table(columns | _data(first) | {KNOWN: pa.array(known)})


def _values(
    view: ServedView, seen: pa.Table, history: ParquetDatasetStore, connection: Any, namespace: str
) -> tuple[dict[str, Any], dict[str, Any], Mask]:
    """The features of a view, null where nothing was served; their statuses; and where they are known."""
    with history.sources(view.fields, connection, namespace) as sources:
        whole = whole_of(sources, _last(seen))
        if whole is not None:
            return _values_in(view, seen, whole, partitioned=False)

        def read(partition: int, places: pa.Array) -> pa.Table:
            own = seen.take(places)
            loaded = sources.load(partition, through=_last(own))
            values, statuses, known = _values_in(view, own, loaded, partitioned=True)
            return pa.table([*values.values(), *statuses.values(), known], [str(i) for i in range(2 * len(values) + 1)])

        *columns, known = by_partition(seen.column("entity_id").combine_chunks(), sources.count, read).columns
    names, count = [name for name, _ in view.features], len(view.features)
    values, statuses = (dict(zip(names, own, strict=True)) for own in (columns[:count], columns[count:]))
    return values, statuses, known.to_numpy()


def _last(seen: pa.Table) -> int:
    """The last position that was served."""
    return pc.max(seen.column("position")).as_py() or 0


def _values_in(
    view: ServedView, seen: pa.Table, loaded: Loaded, *, partitioned: bool
) -> tuple[dict[str, Any], dict[str, Any], Mask]:
    """:func:`_values` of entities whose rows are in ``loaded``, which has all partitions or one of several."""
    positions, event_times, states, times = (
        seen.column(name).combine_chunks().to_numpy(zero_copy_only=False)
        for name in ("position", "event_time", "state", "time")
    )
    was_served = states == PRESENT
    last = int(positions.max(initial=0))
    entities = seen.column("entity_id").combine_chunks().dictionary_encode()
    keys = States.of(_with_tie_breaker(view), loaded, entities.dictionary, last)
    rows = keys.written_by(entities.indices.to_numpy(), positions, event_times)
    rows = np.where(was_served, rows, -1)
    known = ~was_served | (rows >= 0)
    if len(keys.keys.kind):
        # What a partial row did not set was another row's before the commit of a load that had begun, and after it.
        is_partial = (rows >= 0) & (keys.keys.kind[rows] == Kind.partial)
        for commit in loaded.counted.commits:
            known &= ~(is_partial & (positions > commit.begin) & (positions <= commit.position))
        if partitioned:  # And until the node that served it had the commit from all of its logs, whenever that was.
            some = np.flatnonzero(is_partial)
            known[some[keys.reach_load(rows[some])]] = False
    gaps = missing(loaded, last)
    if gaps and len(keys.keys.kind):
        # What a partial row did not set may be in entries that are missing.
        known &= ~((rows >= 0) & (keys.keys.kind[rows] == Kind.partial) & (positions > gaps[0][0]))
    as_of = position_after(times.view(np.int64))
    values = keys.table(view.fields, loaded, entities, np.where(known, rows, -1), as_of)
    features, statuses = {}, dict.fromkeys((name for name, _ in view.features), pa.array(states))
    for (name, field), age in zip(view.features, view.ages or [0] * len(view.features), strict=True):
        column = values.column(field.name)
        if age:
            is_outdated = was_served & (event_times < times.view(np.int64) - age)
            column = pc.if_else(pa.array(is_outdated), pa.scalar(None, column.type), column)
            statuses[name] = pa.array(np.where(is_outdated, OUTDATED, states))
        features[name] = column
    return features, statuses, known


def _with_tie_breaker(view: ServedView) -> Schema:
    fields = {field.name: field for field in view.fields.fields}
    if view.tie_breaker is None:
        return view.fields
    fields.setdefault(view.tie_breaker, FeatureField(view.tie_breaker, dtype.int64))
    return make_schema(view.schema, list(fields.values()), tie_breaker=view.tie_breaker)


def _data(first: pa.Table) -> dict[str, Any]:
    """What requests brought and on-demand views computed, by name; ``first`` has the first view of each row."""
    data = first.column("data").combine_chunks()
    if data.null_count == len(data):
        return {}
    starts = np.flatnonzero(np.diff(first.column("request").to_numpy(), prepend=-1))
    counts = np.diff([*starts, len(first)])
    tables = []
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        content = data[start].as_buffer()
        table = pa.table({"": pa.nulls(count)}) if content is None else _stream(content)
        if len(table) != count:
            raise CorruptHistoryError(f"served log: data of {len(table)} rows in a request of {count}")
        tables.append(table)
    found = pa.concat_tables(tables, promote_options="permissive")
    return {name.partition(":")[2]: found.column(name) for name in found.schema.names if name}


def _stream(content: pa.Buffer) -> pa.Table:
    try:
        return pa.ipc.open_stream(content).read_all()
    except pa.ArrowException as error:
        raise CorruptHistoryError(f"served log: {content.size} bytes are no data of a request: {error}") from error
