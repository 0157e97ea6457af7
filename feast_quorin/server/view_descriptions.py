"""``GET /v1/schemas``: the feature views that are served, with their rows and freshness, for the page at ``/``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_quorin.names import table_schema_name

if TYPE_CHECKING:
    from quorin.http import Catalogue


def described(store: Any, catalogue: Catalogue) -> dict[str, Any]:
    """The views that have rows, on-demand views left out; as :class:`quorin.http.SegmentServer` describes schemas, with
    Feast's names and types, and the join keys.
    """
    registry, project = store.registry, store.project
    views = [
        *registry.list_feature_views(project, allow_cache=True),
        *registry.list_stream_feature_views(project, allow_cache=True),
    ]
    found = [_described(store, catalogue, view) for view in sorted(views, key=lambda view: view.name) if view.online]
    return {"project": project, "schemas": found}


def _described(store: Any, catalogue: Catalogue, view: Any) -> dict[str, Any]:
    described = catalogue.describe_one(table_schema_name(store.config, view))
    keys, fields = _typed(view.entity_columns, "type"), _typed(view.features, "dtype")
    return described | {"schema": view.name, "keys": keys, "fields": fields}


def _typed(fields: Any, type_key: str) -> list[dict[str, str]]:
    return [{"name": field.name, type_key: str(field.dtype)} for field in fields]
