"""The served log in the form of Feast's feature logging, for ``FeatureStore.write_logged_features``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.feature_logging import LOG_DATE_FIELD, LOG_TIMESTAMP_FIELD, REQUEST_ID_FIELD, FeatureServiceLoggingSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.feature_view_utils import get_feature_view_from_registry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

from feast_quorin.config import ConfigError, StoreSettings
from feast_quorin.convert.entity_ids import key_columns
from feast_quorin.views import StoredView, stored_view
from quorin.errors import RepositoryError
from quorin.offline import ServedView, read_served

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

_STATUSES = pa.array([FieldStatus.NOT_FOUND, FieldStatus.PRESENT, FieldStatus.OUTSIDE_MAX_AGE], pa.int32())
"""Feast's statuses by those of `read_served`. Null values are present, as in answers."""


def logged_features(
    store: FeatureStore, service: FeatureService, *, since_ns: int | None = None, until_ns: int | None = None
) -> pa.Table:
    """What requests with the features of a service were answered with, from ``since_ns`` to before ``until_ns``
    (nanoseconds since the epoch), as the table that ``store.write_logged_features(table, service)`` takes to the
    destination of the service's ``logging_config``.

    Requests are those of the store's served log that asked for exactly the features of the service, by whichever
    names. Of these it has the share ``sample_rate`` of the service's ``logging_config``, the same ones each time; rows
    that the history no longer has are left out. One row for each row of a request, with the columns of
    ``FeatureServiceLoggingSource``: join keys, and for each feature its value, ``__timestamp`` and ``__status``.

    :raises RepositoryError: for a service with on-demand views, which have no row in the log. :raises ConfigError: for
        a store without ``served_log`` or ``offline_path``.
    """
    settings = store.config.online_store
    if not isinstance(settings, StoreSettings) or settings.served_log is None or settings.offline_path is None:
        raise ConfigError("logged_features needs served_log, and offline_path, the history")
    views = [_View(store, projection) for projection in service.feature_view_projections]
    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    connection, history, _ = settings.places(store.config.repo_path)
    tables = [schema.empty_table()]
    for full_names in (False, True):
        rows = read_served(
            settings.served_log_url(store.config.repo_path) or "",
            history or "",
            since_ns=since_ns,
            until_ns=until_ns,
            connection=connection,
            of_views=partial(_is_of, views, full_names),
            with_statuses=True,
        )
        if len(rows):
            chosen = rows.filter(pc.and_(rows.column("known"), pa.array(_is_sampled(rows, _rate(service)))))
            tables.append(_table(chosen, views, full_names, schema))
    return pa.concat_tables(tables)


class _View:
    """A view of a service: Feast's and the engine's."""

    def __init__(self, store: FeatureStore, projection: Any) -> None:
        table: Any = get_feature_view_from_registry(store.registry, projection.name, store.project)
        if isinstance(table, OnDemandFeatureView):
            raise RepositoryError(
                f"expected a service of stored views, got the on-demand view {projection.name!r}, whose features have "
                "no row that was served; `quorin served replay` has them"
            )
        self.name: str = projection.name_to_use()
        self.stored: StoredView = stored_view(store.config, table)
        self.fields = {one.name: self.stored.features[one.name].field for one in projection.features}
        keys = {column.name: column.dtype.to_value_type() for column in table.entity_columns}
        self.keys = {name: kind for name, kind in keys.items() if name != DUMMY_ENTITY_ID}
        self.join_keys = {name: projection.join_key_map.get(name, name) for name in self.keys}

    def answer_name(self, feature: str, full_names: bool) -> str:
        """The name of a feature in the answer."""
        return f"{self.name}__{feature}" if full_names else feature


def _is_of(views: Sequence[_View], full_names: bool, found: Sequence[ServedView]) -> bool:
    """Whether a request was for these views and features, with names of this kind."""
    asked = {view.name: {(name, field.name) for name, field in view.features} for view in found}
    own = {
        view.name: {(view.answer_name(name, full_names), field) for name, field in view.fields.items()}
        for view in views
    }
    return asked == own


def _rate(service: FeatureService) -> float:
    return 1.0 if service.logging_config is None else float(service.logging_config.sample_rate)


def _is_sampled(rows: pa.Table, rate: float) -> Any:
    """Which rows are in the sample: a hash of the time decides, so a request is whole, and the same ones each time."""
    times = rows.column("time").cast(pa.int64()).to_numpy().astype(np.uint64)
    mixed = (times ^ (times >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53 < rate


def _table(rows: pa.Table, views: Sequence[_View], full_names: bool, schema: pa.Schema) -> pa.Table:
    columns = dict(_system_columns(rows))
    for view in views:
        columns |= _join_keys(rows, view)
        columns |= _features(rows, view, full_names)
    return pa.table({field.name: columns[field.name].cast(field.type) for field in schema}, schema)


def _system_columns(rows: pa.Table) -> Iterator[tuple[str, Any]]:
    # Feast's logs have microseconds.
    times = pc.floor_temporal(rows.column("time"), unit="microsecond").cast(pa.timestamp("us", "UTC"))
    yield LOG_TIMESTAMP_FIELD, times
    yield LOG_DATE_FIELD, times.cast(pa.timestamp("us")).cast(pa.date32())
    yield REQUEST_ID_FIELD, rows.column("request_id")


def _join_keys(rows: pa.Table, view: _View) -> dict[str, Any]:
    own = f"entity_id:{view.name}"
    ids = rows.column(own if own in rows.schema.names else "entity_id").combine_chunks()
    return {view.join_keys[name]: column for name, column in key_columns(ids, view.keys).items()}


def _features(rows: pa.Table, view: _View, full_names: bool) -> dict[str, Any]:
    seconds = pc.divide(rows.column(f"event_time_ns:{view.name}"), 10**9).cast(pa.timestamp("s"))
    columns: dict[str, Any] = {}
    for feature in view.fields:
        answered = view.answer_name(feature, full_names)
        columns |= {
            f"{view.name}__{feature}": rows.column(answered),
            f"{view.name}__{feature}__timestamp": seconds,
            f"{view.name}__{feature}__status": _STATUSES.take(rows.column(f"status:{answered}").combine_chunks()),
        }
    return columns
