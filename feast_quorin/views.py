"""A feature view as the engine stores it: its schema, and the codec of each feature."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from feast_quorin.convert.codecs import Codec, codec_for
from feast_quorin.names import field_name, table_schema_name
from quorin.errors import SchemaError
from quorin.schema import FeatureField, Schema, dtype, is_other_entity, make_schema

if TYPE_CHECKING:
    from feast.repo_config import RepoConfig
    from feast.value_type import ValueType

    _Typed = tuple[tuple[str, ValueType], ...]

CREATED = "created_ns"
"""The engine's field for a row's ``created`` time. Fields of features end in ``__<type>``, so none has this name."""


@dataclass(frozen=True, slots=True)
class StoredFeature:
    """One feature: the engine's field that holds it, and its codec."""

    field: str
    codec: Codec


@dataclass(frozen=True, slots=True)
class StoredView:
    """One feature view, or one version of it. ``name`` is Feast's, for error texts; the schema's is the engine's."""

    name: str
    schema: Schema
    features: Mapping[str, StoredFeature]


def stored_view(config: RepoConfig, table: Any) -> StoredView:
    """The stored view of a Feast object (feature, stream, on-demand or label view); the same object for equal views.

    If the source has a column of ``created`` times, rows store them beside the features, to break ties.

    :raises SchemaError: for a view without features.
    """
    features = tuple((field.name, field.dtype.to_value_type()) for field in table.features)
    has_created = bool(getattr(getattr(table, "batch_source", None), "created_timestamp_column", None))
    keys = tuple((column.name, column.dtype.to_value_type()) for column in getattr(table, "entity_columns", None) or ())
    return _stored_view(table.name, table_schema_name(config, table), features, keys, has_created)


def check_entity(view: StoredView, stored: Schema) -> None:
    """Refuse a view whose join keys are not those that its rows were written by.

    :raises SchemaError: naming both.
    """
    if is_other_entity(view.schema, stored):
        raise SchemaError(
            f"feature view {view.name!r}: its rows have the keys {stored.entity}, but this process expects "
            f"{view.schema.entity}. Run `feast apply`, or refresh the registry if it was applied elsewhere"
        )


def in_feasts_names(view: StoredView, text: str) -> str:
    """A text of the engine's with the names of a view and its features in place of those of schema and fields."""
    names = {view.schema.__name__: view.name} | {stored.field: name for name, stored in view.features.items()}
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), text)


@lru_cache(maxsize=1024)
def _stored_view(view: str, schema_name: str, features: _Typed, keys: _Typed, has_created: bool) -> StoredView:
    if not features:
        raise SchemaError(f"feature view {view!r} has no features, so there is nothing to store")
    stored = {name: StoredFeature(field_name(name, kind.name.lower()), codec_for(kind)) for name, kind in features}
    fields = [feature.codec.field(feature.field) for feature in stored.values()]
    if has_created:
        fields.append(FeatureField(CREATED, dtype.int64))
    # In the order of the names, as in ids. A view without entity columns accepts the keys that are stored.
    entity = ", ".join(f"{name} {kind.name}" for name, kind in sorted(keys, key=itemgetter(0))) or None
    schema = make_schema(schema_name, fields, tie_breaker=CREATED if has_created else None, entity=entity)
    return StoredView(view, schema, stored)
