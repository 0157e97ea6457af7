"""Compiled requests: what Feast resolves anew for every request, resolved once.

A :class:`Plan` is compiled by Feast's own functions for one choice of features, and used until Feast itself would look
at the registry again (see :mod:`feast_quorin.read.freshness`). Requests that a plan cannot answer exactly as Feast
would go Feast's generic path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from feast.on_demand_feature_view import OnDemandFeatureView

from feast_quorin import feast_private
from feast_quorin.cache import BoundedCache
from feast_quorin.convert.decoders import NumberDecoder, decoder_for
from feast_quorin.read.ages import limits_of_settings
from feast_quorin.read.freshness import RegistryState, can_tell_changes, current_state
from feast_quorin.read.on_demand import transforms
from feast_quorin.read.resolved import Feature, Resolved, Transform, ViewPlan
from feast_quorin.read.selection import ChoiceKeys
from feast_quorin.read.shape import Shape, shape_for
from feast_quorin.read.view_reader import ViewReader
from feast_quorin.views import stored_view

if TYPE_CHECKING:
    from feast.value_type import ValueType

    from feast_quorin.feast_private import RequestContext
    from feast_quorin.read.ages import Limits
    from feast_quorin.session import Session

_MAX_PLANS = 256
_MAX_SHAPES = 256


class Plan:
    """One choice of features, resolved."""

    __slots__ = ("_context", "_resolved", "_shapes")

    def __init__(self, context: RequestContext, resolved: Resolved) -> None:
        self._context = context
        self._resolved = resolved
        self._shapes: BoundedCache[Any, Shape | None] = BoundedCache(_MAX_SHAPES)

    @property
    def resolved(self) -> Resolved:
        """The choice of features that this is compiled from."""
        return self._resolved

    def shape(self, names: tuple[str, ...], limits: Limits = ()) -> Shape | None:
        """The plan for rows with these columns, and a request's age limits; None if only Feast can answer or refuse
        them.

        :raises InvalidMaxAgeError: for a feature that its view does not have.
        """
        key = (names, limits) if limits else names
        try:
            return self._shapes[key]
        except KeyError:
            shape = self._shapes[key] = shape_for(self._resolved.limited(limits), self._context, names)
            return shape


class Plans:
    """The plans of one store, in one process. Threads may share them."""

    def __init__(self, session: Session, config: Any) -> None:
        self.session = session
        self.config = config
        self._plans: BoundedCache[Any, _CachedPlan] = BoundedCache(_MAX_PLANS)
        self._choice_keys = ChoiceKeys()

    def find(self, features: Any, registry: Any, project: str, full_names: bool, with_versions: bool) -> Plan | None:
        """The plan for a choice of features; None if only Feast's generic path will do.

        :raises Exception: what Feast raises about the choice.
        """
        choice = self._choice_keys.key(features)
        if choice is None:
            return None
        key = (choice, project, full_names, with_versions)
        cached = self._plans.get(key)
        if cached is None or not cached.state.holds(registry):
            if not can_tell_changes(registry):
                return None
            cached = self._renewed(cached, key, features, registry)
        return cached.plan

    def _renewed(self, cached: _CachedPlan | None, key: tuple[Any, ...], features: Any, registry: Any) -> _CachedPlan:
        """The cached plan if the registry still has the same content, else a new one."""
        _, project, full_names, with_versions = key
        state = current_state(registry, project)
        if cached is not None and cached.state.is_same(state):
            cached.state = state
            return cached
        context = feast_private.request_context(registry, project, features, full_names)
        resolved = self._resolved(context, full_names, with_versions)
        plan = None if resolved is None else Plan(context, resolved)
        cached = self._plans[key] = _CachedPlan(state, plan)
        return cached

    def _resolved(self, context: RequestContext, full_names: bool, with_versions: bool) -> Resolved | None:
        """The choice, resolved; None if only Feast's generic path will do."""
        grouped = context.grouped
        if not grouped or not all(_is_stored(table) and _has_fields(table, names) for table, names in grouped):
            return None
        computed = transforms(context.on_demand_views, context.references, full_names)
        if computed is None:
            return None
        views = tuple(self._view(table, list(names)) for table, names in grouped)
        typed = [pair for index, view in enumerate(views) for pair in _features(index, view, full_names)]
        inputs = tuple(feature for feature, _ in typed)
        feature_types = feast_private.feature_types(grouped)
        visible = [(feature, kind) for feature, kind in typed if computed or feature.name in context.result_names]
        if not _is_unambiguous(visible, computed, feature_types):
            return None
        return Resolved(
            full_names=full_names,
            versions=_versions(views) if with_versions else None,
            views=views,
            inputs=inputs,
            features=tuple(feature for feature in inputs if feature.name in context.result_names),
            transforms=computed,
            feature_types=feature_types,
            has_numbers_only=all(type(feature.decoder) is NumberDecoder for feature in inputs),
        )

    def _view(self, table: Any, requested: list[str]) -> ViewPlan:
        stored = stored_view(self.config, table)
        codecs = {name: stored.features[name].codec for name in requested}
        fields = {name: stored.features[name].field for name in requested}
        limits = limits_of_settings(self.config, table, requested)
        reader = ViewReader(
            self.session, stored, requested, {fields[feature]: limit for feature, limit in limits.items()}
        )
        return ViewPlan(table, requested, codecs, fields, reader, limits)


class _CachedPlan:
    """A plan, and the state of the registry that it is valid for; without a plan, the generic path is."""

    __slots__ = ("plan", "state")

    def __init__(self, state: RegistryState, plan: Plan | None) -> None:
        self.state = state
        self.plan = plan


def _is_stored(table: Any) -> bool:
    """Whether the store has rows of this view; it has none of an on-demand view that is computed when it is read."""
    return not isinstance(table, OnDemandFeatureView) or table.write_to_online_store


def _has_fields(table: Any, names: Iterable[str]) -> bool:
    return {*names} <= {field.name for field in table.features}


def _versions(views: Iterable[ViewPlan]) -> dict[str, int]:
    found: dict[str, int] = {}
    for view in views:
        projection = view.table.projection
        version = getattr(view.table, "current_version_number", 0) or 0
        found.setdefault(projection.name_alias or projection.name, version)
    return found


def _features(index: int, view: ViewPlan, full_names: bool) -> Iterator[tuple[Feature, ValueType]]:
    """The features of the view with this index, with their types."""
    types = {field.name: field.dtype.to_value_type() for field in view.table.features}
    columns = list(view.codecs)
    prefix = f"{view.table.projection.name_to_use()}__" if full_names else ""
    for name in view.requested:
        yield Feature(prefix + name, index, columns.index(name), decoder_for(types[name])), types[name]


def _is_unambiguous(
    visible: Sequence[tuple[Feature, ValueType]], computed: Iterable[Transform], feature_types: dict[str, ValueType]
) -> bool:
    """Whether every name in the response, and every name that on-demand views see, is one feature of one type."""
    names = [feature.name for feature, _ in visible]
    results = {name for transform in computed for name in transform.results}
    if len({*names}) < len(names) or not results.isdisjoint(names):
        return False
    return all(feature_types.get(feature.name) is value_type for feature, value_type in visible)
