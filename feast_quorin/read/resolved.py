"""A choice of features, resolved: the data that the reads, the responses and the on-demand views share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from feast_quorin.read.ages import limits_for, shortest

if TYPE_CHECKING:
    from feast.value_type import ValueType

    from feast_quorin.convert.codecs import Codec
    from feast_quorin.convert.decoders import Decoder
    from feast_quorin.read.ages import Limits
    from feast_quorin.read.view_reader import ViewReader
    from quorin.assembly import RowsLayout


class Feature(NamedTuple):
    """A feature to read: its name in the response, the index of its view in the request, the index of its column in
    what is read of the view, and the decoder of its values.
    """

    name: str
    view: int
    column: int
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """One view: the features to read in Feast's order, with the codec and the engine's field of each.

    ``limits`` are the ages up to which features are served, for those that have such a limit.
    """

    table: Any
    requested: list[str]
    codecs: dict[str, Codec]
    fields: dict[str, str]
    reader: ViewReader
    limits: dict[str, timedelta]

    def limited(self, limits: Limits) -> ViewPlan:
        """This view with the limits of a request beside those of the settings.

        :raises InvalidMaxAgeError: for a feature that the view does not have.
        """
        merged = shortest(self.limits, limits_for(limits, self.table, self.requested))
        if merged == self.limits:
            return self
        fields = {self.fields[feature]: limit for feature, limit in merged.items()}
        return replace(self, limits=merged, reader=self.reader.limited(fields))


@dataclass(frozen=True, slots=True)
class Transform:
    """One on-demand view of a request: the names of its requested results, and the columns that it must not see.

    ``pairs`` are the short and the full name of every feature that it is made from: its function sees both.
    """

    view: Any
    name: str
    results: frozenset[str]
    hidden: frozenset[str]
    types: dict[str, ValueType]
    pairs: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Resolved:
    """One choice of features. Threads may share it.

    ``features`` are those of the response, in its order. ``inputs`` are all that are read: on-demand views see them.
    ``versions`` are those of the views by their names in the response, None if they are not part of it.
    ``feature_types`` are the types that the response knows, by name. ``row_templates`` and ``arrow_schemas`` are kept
    here by :mod:`feast_quorin.server.json_row` and :mod:`feast_quorin.server.arrow_body`.
    """

    full_names: bool
    versions: dict[str, int] | None
    views: tuple[ViewPlan, ...]
    inputs: tuple[Feature, ...]
    features: tuple[Feature, ...]
    transforms: tuple[Transform, ...]
    feature_types: dict[str, ValueType]
    has_numbers_only: bool
    row_templates: dict[tuple[str, ...], bytes] = field(default_factory=dict, init=False, repr=False, compare=False)
    arrow_schemas: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _view_names: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)
    _slots: tuple[Any, list[tuple[str, int]]] = field(default=(None, []), init=False, repr=False, compare=False)

    def limited(self, limits: Limits) -> Resolved:
        """This choice with the limits that a request asks for as ``max_age``.

        :raises InvalidMaxAgeError: as :meth:`ViewPlan.limited`.
        """
        return replace(self, views=tuple(view.limited(limits) for view in self.views)) if limits else self

    def view_names(self) -> tuple[str, ...]:
        """The names of the views in the response."""
        if self._view_names is None:
            self._view_names = tuple(view.table.projection.name_to_use() for view in self.views)
        return self._view_names

    @property
    def with_versions(self) -> bool:
        """Whether the versions of views are part of the response."""
        return self.versions is not None

    def slots(self, layout: RowsLayout) -> list[tuple[str, int]]:
        """The names in the response, each with the index of the feature's first value in rows of a layout."""
        cached, slots = self._slots
        if cached is not layout:
            slots = [(name, layout.slot(view, column)) for name, view, column, _ in self.features]
            self._slots = layout, slots
        return slots
