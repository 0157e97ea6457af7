"""Every use of Feast's private names, so that an upgrade of Feast is one diff.

Callers ask :func:`feast_quorin.feast_versions.has` first whether the installed Feast has what their part needs.

Two kinds of names are elsewhere. Classes that derive from Feast's override some private methods and attributes of
theirs: :data:`OVERRIDDEN` lists them. And :mod:`feast_quorin.hook`, which imports nothing, knows a table of
``feast.repo_config``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from feast import online_response, utils
from feast.infra.online_stores.online_store import OnlineStore

from feast_quorin.feast_versions import COMPILED_READS, DOCUMENTS, METRICS, has, say_lost

if TYPE_CHECKING:
    import pyarrow as pa
    from feast.feature_service import FeatureService
    from feast.online_response import OnlineResponse
    from feast.value_type import ValueType

OVERRIDDEN = {
    "feast.infra.online_stores.online_store.OnlineStore": (
        "_read_features_per_fv",
        "_read_features_per_fv_async",
        "_versioned_read_supported",
    ),
    "feast.infra.compute_engines.local.compute.LocalComputeEngine": ("_materialize_one",),
    "feast.online_response.OnlineResponse": ("_feature_types",),
}
"""Private names of Feast's classes that classes of the plugin define or assign anew."""


class RequestContext(NamedTuple):
    """Feast's resolution of a choice of features against the registry, before any read.

    ``references`` are ``view:feature`` for every requested feature. ``grouped`` has each view that is read with the
    features to read of it. ``result_names`` are the names of the requested features in the response. ``request_data``
    are the columns that on-demand views take from the request itself. ``is_entityless`` says whether one of the views
    has no entity.
    """

    references: list[str]
    on_demand_views: list[Any]
    join_key_of_entity: dict[str, str]
    join_key_types: dict[str, ValueType]
    join_keys: set[str]
    grouped: list[tuple[Any, list[str]]]
    result_names: set[str]
    request_data: set[str]
    is_entityless: bool


def request_context(registry: Any, project: str, features: Any, full_names: bool) -> RequestContext:
    """Resolve a choice of features against the registry.

    :raises Exception: Feast's own error, such as the one for an unknown feature. :raises NotImplementedError: if Feast
        resolves to something else.
    """
    context = utils._get_online_request_context(registry, project, features, full_names)
    try:
        return RequestContext(*context)
    except TypeError as error:
        say_lost(COMPILED_READS, f"feast.utils:_get_online_request_context: {error}")
        raise NotImplementedError(f"Feast resolves a request to something else: {error}") from error


def entity_values(table: Any, join_key_of_entity: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    """The values of a view's own join keys, by the view's names for them; keys that ``values`` lacks are left out."""
    return utils._get_table_entity_values(table, join_key_of_entity, values)


def unique_entities(
    table: Any, join_key_values: dict[str, Any], join_key_of_entity: dict[str, str]
) -> tuple[Sequence[dict[str, Any]], Sequence[list[int]], int]:
    """A view's distinct entities in a request, the indexes of the rows of each, and the number of rows."""
    return utils._get_unique_entities(table, join_key_values, join_key_of_entity)


def entity_row_indexes(key_columns: dict[str, list[Any]]) -> Sequence[list[int]]:
    """The row indexes of each distinct entity, in the order in which Feast sorts entities; columns by join key.

    A Feast that does not sort them has them in the order of the columns.
    """
    if not has(DOCUMENTS) and not hasattr(utils, "_get_unique_entities_from_values"):
        return [[row] for row in range(len(next(iter(key_columns.values()), ())))]
    return utils._get_unique_entities_from_values(key_columns)[1]


def feature_types(grouped: list[tuple[Any, list[str]]]) -> dict[str, ValueType]:
    """The types that a response knows of the features of views, by name; see :class:`RequestContext`."""
    return OnlineStore._build_feature_types(grouped)


def feature_types_of(response: OnlineResponse) -> dict[str, ValueType]:
    """The types that Feast gave to a response, by feature name; empty if it gave none."""
    return getattr(response, "_feature_types", None) or {}


def split_reference(reference: str) -> tuple[str, str]:
    """View and feature of a reference ``view:feature`` or ``view@version:feature``."""
    view, _, feature = utils._parse_feature_ref(reference)
    return view, feature


def apply_aggregations(data: Any, view: Any) -> Any:
    """A dictionary or Arrow table of columns, aggregated as an on-demand view declares it."""
    return utils._apply_aggregations_to_response(data, view.aggregations, view.entities, view.mode)


def convert_uuids(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Columns of Python values as Feast hands them to Arrow: UUIDs as strings."""
    return online_response._convert_uuids_for_arrow(columns)


def has_unresolved_features(service: FeatureService) -> bool:
    """Whether a service names features that Feast has yet to look up in the registry."""
    return bool(getattr(service, "_pending_feature_refs", None))  # Feast before 0.67 has only resolved ones


def online_metrics() -> Any:
    """The module ``feast.metrics`` if it counts online reads in this process, else None."""
    metrics = sys.modules.get("feast.metrics")
    return metrics if metrics is not None and has(METRICS) and metrics._config.online_features else None


def compute_backend(engine: Any, context: Any) -> Any:
    """The backend that runs the transformations of a local compute engine in an execution."""
    return engine._get_backend(context)


def check_vector_lengths(table: pa.Table, view: Any) -> None:
    """Check the vectors in an Arrow table against a view, as Feast does since 0.67.

    :raises ValueError: for vectors of different lengths, or of another length than the declared one.
    """
    check = getattr(utils, "_validate_vector_field_lengths", None)
    if check is not None:
        check(table, view)


def json_values(protos: list[Any]) -> list[Any]:
    """``Value`` protos as Feast's feature server writes them in JSON."""
    from feast.feature_server_utils import convert_response_to_dict
    from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

    vector = GetOnlineFeaturesResponse.FeatureVector(values=protos)
    values: list[Any] = convert_response_to_dict(GetOnlineFeaturesResponse(results=[vector]))["results"][0]["values"]
    return values


def start_server_parts(store: Any, *, metrics: bool) -> None:
    """What Feast's ``start_server`` does before it serves: metrics, and authentication."""
    from feast import metrics as feast_metrics
    from feast.permissions.server.utils import (
        ServerType,
        init_auth_manager,
        init_security_manager,
        str_to_auth_manager_type,
    )

    configured = getattr(store.config.feature_server, "metrics", None)
    if metrics or has_metrics(store):
        feast_metrics.start_metrics_server(store, metrics_config=feast_metrics.build_metrics_flags(configured))
    auth_type = str_to_auth_manager_type(store.config.auth_config.type)
    init_security_manager(auth_type=auth_type, fs=store)
    init_auth_manager(auth_type=auth_type, server_type=ServerType.REST, auth_config=store.config.auth_config)


def has_metrics(store: Any) -> bool:
    """Whether ``feature_store.yaml`` asks for Feast's metrics."""
    return bool(getattr(getattr(store.config.feature_server, "metrics", None), "enabled", False))


async def assert_readable(store: Any, choice: str | tuple[str, ...]) -> None:
    """Check that the current user of Feast's security manager may read the features of a service, or by reference.

    :raises Exception: what Feast's server raises for the request, such as ``FeastPermissionError``.
    """
    from feast import feature_server

    named = {"feature_service": choice} if isinstance(choice, str) else {"features": list(choice)}
    await feature_server._get_features(feature_server.GetOnlineFeaturesRequest(entities={}, **named), store)


def allows_short_way(store: Any) -> bool:
    """Whether Feast's server only authenticates a request and answers it: no audit log or metrics."""
    from feast import metrics

    audit = getattr(store.config.feature_server, "audit_logging", None)
    if not has(METRICS):
        return False
    counts = metrics._config
    return not (counts.request or counts.online_features or counts.audit_logging or getattr(audit, "enabled", False))


def follows_requests(store: Any) -> bool:
    """Whether Feast's store does more than answer: it logs each retrieval to MLflow when it has the response."""
    mlflow: Any = getattr(store.config, "mlflow", None)
    return mlflow is not None and bool(mlflow.enabled and mlflow.auto_log)
