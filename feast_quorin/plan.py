"""Compiled requests: what Feast finds out about a request anew each time, found out once.

A :class:`Plan` is made by Feast's own functions for one choice of features, and used until Feast itself would look
again: until the registry's cache was refreshed with another content, or its time ran out. A request that a plan cannot
answer exactly as Feast would is left to Feast's generic path.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from feast import utils
from feast.feature_service import FeatureService
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.registry import Registry

from feast_quorin.decoding import Decoder, decoder_for
from feast_quorin.request import KeyColumn, can_be_key, entity_id, entity_ids
from feast_quorin.response import LazyResponse
from feast_quorin.view_reader import ViewReader
from feast_quorin.views import stored_view
from quorin.errors import EntityIdError

if TYPE_CHECKING:
    from feast.value_type import ValueType

    from feast_quorin.engine import Engine
    from feast_quorin.values import Codec

_MOST_PLANS = 256


class Feature(NamedTuple):
    """A feature of the answer: its name there, and where its values are in what was read of its view."""

    name: str
    view: int
    place: int
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """One view: the features to read, in the order that Feast gives them in, with their codecs and fields."""

    table: Any
    requested: list[str]
    codecs: dict[str, Codec]
    fields: dict[str, str]
    reader: ViewReader


@dataclass(frozen=True, slots=True)
class Shape:
    """A plan for rows with certain columns: the keys to give back, and which of them make each view's ids."""

    plan: Plan
    keys: tuple[KeyColumn, ...]
    parts: tuple[tuple[int, ...], ...]

    def answer(self, columns: list[list[Any]]) -> LazyResponse | None:
        """Read what the rows ask for; None where they are for Feast to judge.

        :raises SegmentNotFoundError: if a view was never applied, or was removed.
        """
        reads = self._read_row(columns) if len(columns[0]) == 1 else None
        if reads is not None:
            return LazyResponse(self, columns, reads)
        given = [key.normalised(column) for key, column in zip(self.keys, columns, strict=True)]
        keys = [values for values in given if values is not None]
        if len(keys) < len(given):
            return None
        try:
            return LazyResponse.of(self, keys, self._read_rows(keys))
        except EntityIdError:
            return None

    def _read_row(self, columns: list[list[Any]]) -> list[Any] | None:
        """One row, the quick way; None where it does not serve."""
        texts = []
        for key, column in zip(self.keys, columns):  # noqa: B905 - as many by construction, and this is the hot path
            text = key.text(column[0])
            if text is None:
                return None
            texts.append(text)
        rows = []
        for view, part in zip(self.plan.views, self.parts):  # noqa: B905
            row = view.reader.one(texts[part[0]] if len(part) == 1 else entity_id([texts[i] for i in part]))
            if row is None:
                return None
            rows.append(row)
        return rows

    def _read_rows(self, keys: list[list[Any]]) -> list[Any]:
        texts = [key.texts(values) for key, values in zip(self.keys, keys, strict=True)]
        ids = [entity_ids([texts[column] for column in part], len(keys[0])) for part in self.parts]
        return [view.reader.many(many) for view, many in zip(self.plan.views, ids, strict=True)]


class Plan:
    """One choice of features, resolved. ``views`` is empty where only Feast's generic path will do."""

    def __init__(self, registry: Registry, views: Sequence[ViewPlan], *, full_names: bool, with_versions: bool) -> None:
        self.registry = registry
        self.version = registry.cached_registry_proto.version_id
        self.created = registry.cached_registry_proto_created
        self.deadline = _deadline(registry)
        self.views = tuple(views)
        self.full_names = full_names
        self.with_versions = with_versions
        self.features: tuple[Feature, ...] = ()
        self.result_names: frozenset[str] = frozenset()
        self.feature_types: dict[str, ValueType] = {}
        self._context: Any = None
        self._shapes: dict[tuple[str, ...], Shape | None] = {}

    def shape(self, names: tuple[str, ...]) -> Shape | None:
        """The plan for rows with these columns."""
        try:
            return self._shapes[names]
        except KeyError:
            if len(self._shapes) >= _MOST_PLANS:
                self._shapes.clear()
            shape = self._shapes[names] = self._shape(names)
            return shape

    def resolve(self, context: tuple[Any, ...], types: dict[str, ValueType]) -> None:
        """Take what Feast found out about the choice."""
        self._context = context
        self.feature_types = types
        self.result_names = frozenset(context[6])
        features = []
        for number, view in enumerate(self.views):
            kinds = {field.name: field.dtype.to_value_type() for field in view.table.features}
            read = list(view.codecs)
            for name in view.requested:
                given = f"{view.table.projection.name_to_use()}__{name}" if self.full_names else name
                if given in self.result_names:
                    features.append(Feature(given, number, read.index(name), decoder_for(kinds[name])))
                    if types.get(given) is not kinds[name]:
                        self.views = ()
        names = [feature.name for feature in features]
        if len(set(names)) < len(names):
            self.views = ()
        self.features = tuple(features)

    def _shape(self, names: tuple[str, ...]) -> Shape | None:
        _, _, join_keys_of, types, join_keys, grouped, _, _, entityless = self._context
        if any(name not in join_keys or not can_be_key(types.get(name)) for name in names):
            return None
        if any(name in self.result_names or name in self.feature_types for name in names):
            return None
        given: dict[str, Any] = dict(zip(names, names, strict=True)) | (
            {DUMMY_ENTITY_ID: DUMMY_ENTITY_ID} if entityless else {}
        )
        parts = []
        for table, _ in grouped:
            keys = utils._get_table_entity_values(table, join_keys_of, given)
            wanted = {join_keys_of[entity] for entity in table.entities}
            if not wanted or keys.keys() != wanted:
                return None
            parts.append(tuple(names.index(keys[key]) for key in sorted(keys) if key != DUMMY_ENTITY_ID))
            if DUMMY_ENTITY_ID in keys and len(keys) > 1:
                return None
        return Shape(self, tuple(KeyColumn(name, types[name]) for name in names), tuple(parts))


class Plans:
    """The plans of one store, in one process. Threads may share them."""

    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine = engine
        self.config = config
        self._plans: dict[Any, Plan] = {}

    def find(self, features: Any, registry: Any, project: str, full_names: bool, with_versions: bool) -> Plan | None:
        """The plan for a choice of features, or None where only Feast's generic path will do.

        Raises whatever Feast raises about the choice.
        """
        if type(registry) is not Registry:
            return None
        chosen = _choice(features)
        if chosen is None:
            return None
        key = (chosen, project, full_names, with_versions)
        plan = self._plans.get(key)
        if plan is None or plan.created is not registry.cached_registry_proto_created or time.time() > plan.deadline:
            plan = self._renewed(plan, key, features, registry)
        return plan if plan.views else None

    def _renewed(self, plan: Plan | None, key: tuple[Any, ...], features: Any, registry: Registry) -> Plan:
        """The plan if the registry has still the same content, else a new one."""
        _, project, full_names, with_versions = key
        registry.get_project(project, allow_cache=True)  # Refreshes the registry's cache when its time has run out.
        if plan is not None and plan.registry is registry:
            version = registry.cached_registry_proto.version_id
            if version == plan.version:
                plan.deadline, plan.created = _deadline(registry), registry.cached_registry_proto_created
                return plan
        plan = self._compiled(features, registry, project, full_names, with_versions)
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        self._plans[key] = plan
        return plan

    def _compiled(self, features: Any, registry: Registry, project: str, full_names: bool, with_versions: bool) -> Plan:
        context = utils._get_online_request_context(registry, project, features, full_names)
        _, on_demand, _, _, _, grouped, _, request_data, _ = context
        known = all({*names} <= {field.name for field in table.features} for table, names in grouped)
        if on_demand or request_data or not known:
            return Plan(registry, (), full_names=full_names, with_versions=with_versions)
        views = [self._view(table, list(names)) for table, names in grouped]
        plan = Plan(registry, views, full_names=full_names, with_versions=with_versions)
        plan.resolve(context, OnlineStore._build_feature_types(grouped))
        return plan

    def _view(self, table: Any, requested: list[str]) -> ViewPlan:
        stored = stored_view(self.config, table)
        codecs = {name: stored.features[name].codec for name in requested}
        fields = {name: stored.features[name].field for name in requested}
        return ViewPlan(table, requested, codecs, fields, ViewReader(self.engine, stored, requested))


def _choice(features: Any) -> Any:
    """What tells one choice of features from another, or None for one that is left to Feast."""
    if type(features) is list:
        return tuple(features)
    if type(features) is not FeatureService or features.precompute_online or features._pending_feature_refs:
        return None
    projections = [
        (view.name, view.name_alias, view.version_tag, *view.join_key_map.items(), *[f.name for f in view.features])
        for view in features.feature_view_projections
    ]
    return FeatureService, features.name, *projections


def _deadline(registry: Registry) -> float:
    """When the registry's cache runs out, in seconds since the epoch."""
    ttl = registry.cached_registry_proto_ttl.total_seconds()
    return registry.cached_registry_proto_created.timestamp() + ttl if ttl > 0 else math.inf
