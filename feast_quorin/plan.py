"""Compiled requests: what Feast finds out about a request anew each time, found out once.

A :class:`Plan` is made by Feast's own functions for one choice of features, and used until Feast itself would look
again (see :mod:`feast_quorin.freshness`). A request that a plan cannot answer exactly as Feast would is left to Feast's
generic path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from feast import utils
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.online_stores.online_store import OnlineStore
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.value_type import ValueType

from feast_quorin.choice import Choices
from feast_quorin.decoding import Decoder, NumberDecoder, decoder_for
from feast_quorin.freshness import Sign, is_known, look
from feast_quorin.on_demand import Transform, transforms
from feast_quorin.request import RequestData, key_column
from feast_quorin.shape import Shape
from feast_quorin.view_reader import ViewReader
from feast_quorin.views import max_age_ns, stored_view

if TYPE_CHECKING:
    from feast_quorin.engine import Engine
    from feast_quorin.values import Codec
    from quorin.assembly import RowsLayout

_MOST_PLANS = 256


class Feature(NamedTuple):
    """A feature that is read: its name in the answer, and where its values are in what was read of its view."""

    name: str
    view: int
    place: int
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """One view: the features to read, in the order that Feast gives them in, with their codecs and fields.

    ``max_age_ns`` is how old rows may be to count, 0 for any age.
    """

    table: Any
    requested: list[str]
    codecs: dict[str, Codec]
    fields: dict[str, str]
    reader: ViewReader
    max_age_ns: int


class Plan:
    """One choice of features, resolved. Without views only Feast's generic path will do.

    ``features`` are those of the answer, in its order; ``inputs`` all that are read, which on-demand views see.
    """

    def __init__(self, sign: Sign, *, full_names: bool, with_versions: bool) -> None:
        self.sign = sign
        self.full_names = full_names
        self.with_versions = with_versions
        self.views: tuple[ViewPlan, ...] = ()
        self.inputs: tuple[Feature, ...] = ()
        self.features: tuple[Feature, ...] = ()
        self.transforms: tuple[Transform, ...] = ()
        self.has_numbers_only = False
        self.feature_types: dict[str, ValueType] = {}
        self._result_names: frozenset[str] = frozenset()
        self._context: Any = None
        self._slots: tuple[Any, list[tuple[str, int]]] = (None, [])
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

    def slots(self, layout: RowsLayout) -> list[tuple[str, int]]:
        """The names of the answer, and where the first of each feature's values stands in rows of a layout."""
        known, slots = self._slots
        if known is not layout:
            slots = [(name, layout.slot(view, place)) for name, view, place, _ in self.features]
            self._slots = layout, slots
        return slots

    def resolve(self, context: tuple[Any, ...], views: Sequence[ViewPlan]) -> None:
        """Take what Feast found out about the choice."""
        references, on_demand, _, _, _, grouped, result_names, _, _ = context
        self._context = context
        self._result_names = frozenset(result_names)
        self.feature_types = OnlineStore._build_feature_types(grouped)
        computed = transforms(on_demand, references, self.full_names)
        self.inputs = tuple(self._features(views))
        self.features = tuple(feature for feature in self.inputs if feature.name in self._result_names)
        self.transforms = computed or ()
        self.has_numbers_only = all(type(feature.decoder) is NumberDecoder for feature in self.inputs)
        if computed is not None and self._is_unambiguous(views):
            self.views = tuple(views)

    def _features(self, views: Sequence[ViewPlan]) -> list[Feature]:
        features = []
        for number, view in enumerate(views):
            kinds = {field.name: field.dtype.to_value_type() for field in view.table.features}
            read = list(view.codecs)
            for name in view.requested:
                given = f"{view.table.projection.name_to_use()}__{name}" if self.full_names else name
                features.append(Feature(given, number, read.index(name), decoder_for(kinds[name])))
        return features

    def _is_unambiguous(self, views: Sequence[ViewPlan]) -> bool:
        """Whether every name of the answer, and of what on-demand views see, stands for one feature of one type."""
        seen = self.inputs if self.transforms else self.features
        names = [feature.name for feature in seen]
        computed = {name for transform in self.transforms for name in transform.wanted}
        if len({*names}) < len(names) or not computed.isdisjoint(names):
            return False
        for feature in seen:
            view = views[feature.view]
            name = feature.name.removeprefix(f"{view.table.projection.name_to_use()}__" if self.full_names else "")
            kind = next(field.dtype.to_value_type() for field in view.table.features if field.name == name)
            if self.feature_types.get(feature.name) is not kind:
                return False
        return True

    def _shape(self, names: tuple[str, ...]) -> Shape | None:
        _, _, join_keys_of, types, join_keys, grouped, _, request_data, entityless = self._context
        wanted = {place: name for place, name in enumerate(names) if name in request_data}
        keys = {place: name for place, name in enumerate(names) if name in join_keys and place not in wanted}
        others = [place for place in range(len(names)) if place not in wanted and place not in keys]
        taken = {*self._result_names, *self.feature_types, *(feature.name for feature in self.inputs)}
        if len(wanted) < len(request_data) or not taken.isdisjoint([*wanted.values(), *keys.values()]):
            return None
        if any(names[place] in join_keys_of for place in others):
            return None  # The name of an entity instead of its key, which Feast warns about.
        given: dict[str, Any] = {name: place for place, name in enumerate(keys.values())}
        given |= {DUMMY_ENTITY_ID: -1} if entityless else {}
        parts = []
        for table, _ in grouped:
            chosen: dict[str, Any] = utils._get_table_entity_values(table, join_keys_of, given)
            if not chosen or (DUMMY_ENTITY_ID in chosen and len(chosen) > 1):
                return None
            parts.append(tuple(chosen[key] for key in sorted(chosen) if key != DUMMY_ENTITY_ID))
        return Shape(
            self,
            keys=tuple(key_column(name, types.get(name)) for name in keys.values()),
            key_places=tuple(keys),
            request=tuple(RequestData(name, ValueType.UNKNOWN) for name in wanted.values()),
            request_places=tuple(wanted),
            others=tuple(others),
            parts=tuple(parts),
        )


class Plans:
    """The plans of one store, in one process. Threads may share them."""

    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine = engine
        self.config = config
        self._plans: dict[Any, Plan] = {}
        self._choices = Choices()

    def find(self, features: Any, registry: Any, project: str, full_names: bool, with_versions: bool) -> Plan | None:
        """The plan for a choice of features, or None where only Feast's generic path will do.

        Raises whatever Feast raises about the choice.
        """
        chosen = self._choices.key(features)
        if chosen is None:
            return None
        key = (chosen, project, full_names, with_versions)
        plan = self._plans.get(key)
        if plan is None or not plan.sign.holds(registry):
            if not is_known(registry):
                return None
            plan = self._renewed(plan, key, features, registry)
        return plan if plan.views else None

    def _renewed(self, plan: Plan | None, key: tuple[Any, ...], features: Any, registry: Any) -> Plan:
        """The plan if the registry has still the same content, else a new one."""
        _, project, full_names, with_versions = key
        sign = look(registry, project)
        if plan is not None and plan.sign.is_same(sign):
            plan.sign = sign
            return plan
        plan = Plan(sign, full_names=full_names, with_versions=with_versions)
        context = utils._get_online_request_context(registry, project, features, full_names)
        grouped = context[5]
        if all(_is_stored(table) and {*names} <= {field.name for field in table.features} for table, names in grouped):
            plan.resolve(context, [self._view(table, list(names)) for table, names in grouped])
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        self._plans[key] = plan
        return plan

    def _view(self, table: Any, requested: list[str]) -> ViewPlan:
        stored = stored_view(self.config, table)
        codecs = {name: stored.features[name].codec for name in requested}
        fields = {name: stored.features[name].field for name in requested}
        reader = ViewReader(self.engine, stored, requested)
        return ViewPlan(table, requested, codecs, fields, reader, max_age_ns(self.config, table))


def _is_stored(table: Any) -> bool:
    """Whether there are rows of this view; there are none of an on-demand view that is computed when it is read."""
    return not isinstance(table, OnDemandFeatureView) or table.write_to_online_store
