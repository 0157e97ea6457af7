"""Reads for Feast's generic path: one batch read per view, as Feast's rows or straight into Feast's response."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

from feast_quorin import feast_private
from feast_quorin.convert import locating
from feast_quorin.convert.entity_ids import entity_ids, entity_ids_of_rows, key_values
from feast_quorin.convert.times import to_datetime, to_timestamp
from feast_quorin.read.ages import limits_for, limits_of_settings, shortest
from feast_quorin.read.logged_view import log_view
from feast_quorin.read.options import current
from feast_quorin.read.positions import add as add_positions
from feast_quorin.read.together import together
from feast_quorin.views import stored_view
from quorin.assembly import duration_ns

if TYPE_CHECKING:
    from feast_quorin.convert.codecs import Codec
    from feast_quorin.session import Session
    from feast_quorin.views import StoredView

LEADING = ["entity_id", "found", "event_time_ns", "log_position"]
_FOUND, _EVENT_TIME, _POSITION, _FIRST_FIELD = range(1, 5)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a view for some entities.

    ``batch`` is what :func:`quorin.assembly.read` returns with positions: one row per id, in their order. ``features``
    has the codecs of the features whose fields the batch has, in the order of its columns.
    """

    batch: pa.RecordBatch
    features: dict[str, Codec]

    def column(self, feature: str) -> pa.Array:
        """The values of a feature; null if the value is null or the entity has no row."""
        return self.batch.column(_FIRST_FIELD + list(self.features).index(feature))

    def repeated(self, indexes: Sequence[Sequence[int]], row_count: int) -> Rows:
        """The rows in the order of a request of ``row_count`` rows: row ``i`` at each of ``indexes[i]``."""
        source = [0] * row_count
        for row, targets in enumerate(indexes):
            for target in targets:
                source[target] = row
        if source == list(range(len(self.batch))):
            return self
        return Rows(self.batch.take(pa.array(source, pa.int64())), self.features)


def read_rows(
    session: Session,
    view: StoredView,
    ids: Sequence[str],
    requested: Sequence[str] | None = None,
    at_most: int | None = None,
) -> Rows:
    """Read the requested features of entities, by default all; features that the view lacks are left out.

    :raises InconsistentReadError: for a row that was written after the log position ``at_most``.
    """
    names = {view.features[name].field: name for name in requested or view.features if name in view.features}
    fields, batch = session.read(view, ids, list(names), at_most)
    return Rows(batch, {names[field]: view.features[names[field]].codec for field in fields})


def ids_of_keys(view: StoredView, keys: Sequence[Any]) -> list[str]:
    """The ids of ``EntityKey`` protos.

    :raises InvalidRowError: for a null or a value that is no scalar; the text says view, row and join key.
    """
    return locating.Rows(view.name, lambda row: key_values(keys[row])).convert("", keys, entity_ids)


def feast_rows(rows: Rows) -> list[tuple[Any, dict[str, Any] | None]]:
    """Rows as ``online_read`` returns them: event time and a dictionary of protos, or a pair of None."""
    times = rows.batch.column(_EVENT_TIME).to_pylist()
    columns = [codec.to_protos(rows.column(name)) for name, codec in rows.features.items()]
    records = zip(*columns, strict=True) if columns else [()] * len(times)
    return [
        (None, None) if time is None else (to_datetime(time), dict(zip(rows.features, record, strict=True)))
        for time, record in zip(times, records, strict=True)
    ]


def read_views(
    session: Session,
    config: Any,
    grouped: Iterable[tuple[Any, list[str]]],
    join_key_values: dict[str, Any],
    join_key_of_entity: dict[str, str],
    response: Any,
    full_feature_names: bool,
    with_version: bool,
) -> None:
    """Append the requested features of each view to a ``GetOnlineFeaturesResponse``, with one batch read a view."""
    choices = [(table, requested, stored_view(config, table)) for table, requested in grouped]
    entities = [feast_private.unique_entities(table, join_key_values, join_key_of_entity) for table, _, _ in choices]
    ids = [entity_ids_of_rows(rows) for rows, _, _ in entities]

    def read(at_most: int | None) -> list[Rows]:
        pairs = zip(choices, ids, strict=True)
        return [read_rows(session, view, of_view, requested, at_most) for (_, requested, view), of_view in pairs]

    now_ns = session.now_ns or time.time_ns()
    rows_of_views = together(session, [view for _, _, view in choices], read)
    for number, ((table, requested, view), (_, indexes, row_count), rows) in enumerate(
        zip(choices, entities, rows_of_views, strict=True)
    ):
        limits = limits_of_read(config, table, requested)
        log_view(session.served, view, ids[number], rows.batch, limits, now_ns)
        add_to_response(
            response,
            table,
            requested,
            rows.repeated(indexes, row_count),
            full_feature_names=full_feature_names,
            with_version=with_version,
            limits=limits,
            now_ns=now_ns,
        )


def add_to_response(
    response: Any,
    table: Any,
    requested: Sequence[str],
    rows: Rows,
    *,
    full_feature_names: bool,
    with_version: bool,
    limits: Mapping[str, timedelta],
    now_ns: int,
) -> None:
    """Append one vector per requested feature to a ``GetOnlineFeaturesResponse``, as Feast does.

    Values that are older at the time ``now_ns`` than the ``limits`` of their features are null and ``OUTSIDE_MAX_AGE``.
    """
    view = table.projection.name_to_use()
    names = [f"{view}__{name}" if full_feature_names else name for name in requested]
    response.metadata.feature_names.val.extend(names)
    if with_version:
        _add_version(response, table)
    add_positions(view, rows.batch.column(_POSITION).to_pylist())
    found = rows.batch.column(_FOUND).to_pylist()
    statuses = [FieldStatus.PRESENT if is_found else FieldStatus.NOT_FOUND for is_found in found]
    times_ns = rows.batch.column(_EVENT_TIME).to_pylist()
    times = _timestamps(times_ns)
    template = GetOnlineFeaturesResponse.FeatureVector(statuses=statuses, event_timestamps=times)
    for name in requested:
        vector = response.results.add()
        vector.CopyFrom(template)
        if name in rows.features:
            column, limit = rows.column(name), limits.get(name)
            if limit is not None:
                least = now_ns - duration_ns("max_age", limit)
                too_old = [row_time is not None and row_time < least for row_time in times_ns]
                column = pc.if_else(pa.array(too_old, pa.bool_()), pa.scalar(None, column.type), column)
                outside = FieldStatus.OUTSIDE_MAX_AGE
                vector.statuses[:] = [outside if old else status for old, status in zip(too_old, statuses, strict=True)]
            rows.features[name].append_to(vector.values, column)
        else:
            vector.statuses[:] = [FieldStatus.NOT_FOUND] * len(found)
            for _ in found:
                vector.values.add()
    _count_statuses(
        table.name, sum(name in rows.features for name in requested) * sum(found), len(requested) * len(found)
    )


def limits_of_read(config: Any, table: Any, requested: Sequence[str]) -> dict[str, timedelta]:
    """The ages up to which a read serves features of a view: what the settings say, and the request."""
    return shortest(limits_of_settings(config, table, requested), limits_for(current().limits, table, requested))


def _timestamps(times_ns: Sequence[int | None]) -> list[Timestamp]:
    """One proto for each time, shared between equal times; an empty one for None."""
    protos: dict[int | None, Timestamp] = {
        time: Timestamp() if time is None else to_timestamp(time) for time in set(times_ns)
    }
    return [protos[time] for time in times_ns]


def _add_version(response: Any, table: Any) -> None:
    name = table.projection.name_alias or table.projection.name
    if name not in [metadata.name for metadata in response.metadata.feature_view_metadata]:
        response.metadata.feature_view_metadata.add(name=name, version=getattr(table, "current_version_number", 0) or 0)


def _count_statuses(view: str, present: int, values: int) -> None:
    """Report to Feast's own metrics, if they are installed."""
    try:
        from feast.metrics import track_feature_statuses
    except ImportError:
        return
    track_feature_statuses(view, present, values - present)
