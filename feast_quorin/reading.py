"""Reads: one batch read of shared memory a view, as Feast's rows or straight into Feast's response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

from feast_quorin.times import to_datetime, to_timestamp

if TYPE_CHECKING:
    from feast_quorin.engine import Engine
    from feast_quorin.views import StoredView


@dataclass(frozen=True, slots=True)
class Rows:
    """What a view holds for some entities, in the order asked for: N rows.

    ``found`` tells which entities have a row, ``event_times_ns`` is None where one has not. ``features`` holds a list
    of N ``Value`` protos for each feature that the segment has; empty ones are nulls, or belong to rows not found.
    """

    found: list[bool]
    event_times_ns: list[int | None]
    features: dict[str, list[Any]]


def read_rows(engine: Engine, view: StoredView, ids: Sequence[str], requested: Sequence[str] | None = None) -> Rows:
    """Read the requested features (all of the view's without any) of entities; unknown features are left out."""
    names = [name for name in dict.fromkeys(requested or view.features) if name in view.features]
    fields, batch = engine.read(view, ids, [view.features[name].field for name in names])
    kept = [name for name in names if view.features[name].field in fields]
    columns = {name: view.features[name].codec.to_protos(batch.column(3 + i)) for i, name in enumerate(kept)}
    return Rows(batch.column(1).to_pylist(), batch.column(2).to_pylist(), columns)


def feast_rows(rows: Rows) -> list[tuple[Any, dict[str, Any] | None]]:
    """Rows as ``online_read`` returns them: event time and a dictionary of protos, or a pair of None."""
    names = list(rows.features)
    records = zip(*rows.features.values(), strict=True) if names else ((),) * len(rows.found)
    return [
        (to_datetime(time), dict(zip(names, values, strict=True))) if time is not None else (None, None)
        for time, values in zip(rows.event_times_ns, records, strict=True)
    ]


def add_to_response(
    response: Any,
    table: Any,
    requested: Sequence[str],
    rows: Rows,
    destinations: Sequence[Sequence[int]],
    row_count: int,
    *,
    full_feature_names: bool,
    with_version: bool,
) -> None:
    """Append one vector a requested feature to a ``GetOnlineFeaturesResponse``, as Feast's generic path does.

    ``destinations[i]`` lists the places, of ``row_count`` in all, where row ``i`` of ``rows`` belongs.
    """
    name_in_response = table.projection.name_to_use()
    names = [f"{name_in_response}__{name}" if full_feature_names else name for name in requested]
    response.metadata.feature_names.val.extend(names)
    if with_version:
        _add_version(response, table)
    source = [0] * row_count
    for row, places in enumerate(destinations):
        for place in places:
            source[place] = row
    found = [rows.found[row] for row in source]
    status = [FieldStatus.PRESENT if is_found else FieldStatus.NOT_FOUND for is_found in found]
    stamps = [Timestamp() if time is None else to_timestamp(time) for time in rows.event_times_ns]
    times = [stamps[row] for row in source]
    for name in requested:
        column = rows.features.get(name)
        if column is None:
            values, statuses = [Value()] * row_count, [FieldStatus.NOT_FOUND] * row_count
        else:
            values, statuses = [column[row] for row in source], status
        response.results.append(
            GetOnlineFeaturesResponse.FeatureVector(values=values, statuses=statuses, event_timestamps=times)
        )
    _count_statuses(table.name, requested, rows, found)


def _add_version(response: Any, table: Any) -> None:
    name = table.projection.name_alias or table.projection.name
    if name not in [metadata.name for metadata in response.metadata.feature_view_metadata]:
        response.metadata.feature_view_metadata.add(name=name, version=getattr(table, "current_version_number", 0) or 0)


def _count_statuses(view: str, requested: Sequence[str], rows: Rows, found: Sequence[bool]) -> None:
    """Feed Feast's own metrics, where they are installed."""
    try:
        from feast.metrics import track_feature_statuses
    except ImportError:
        return
    present = sum(name in rows.features for name in requested) * sum(found)
    track_feature_statuses(view, present, len(requested) * len(found) - present)
