"""On-demand views, computed from what was read without a detour through protobuf.

Feast's own transformations run, on the dictionaries and tables that Feast would give them. Only what stands around them
in ``feast.utils`` is done here: which columns a function may see, and which of its results are wanted. Results go
through Feast's conversion to protobuf and back where that could change them, or refuse them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from feast import utils
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType

from feast_quorin import wire
from feast_quorin.values import number_lists

if TYPE_CHECKING:
    import pyarrow as pa

    from feast_quorin.response import LazyResponse

_PLAIN = {
    ValueType.DOUBLE: float,
    ValueType.FLOAT: float,
    ValueType.INT64: int,
    ValueType.INT32: int,
    ValueType.STRING: str,
    ValueType.BOOL: bool,
}
_RANGES = {ValueType.INT64: (-(2**63), 2**63 - 1), ValueType.INT32: (-(2**31), 2**31 - 1)}
_MOST_FLOAT = float(np.finfo(np.float32).max)
_MODES = ("python", "pandas", "substrait")


class Computed:
    """One computed feature: its values as Feast gives them back, and as protobuf."""

    __slots__ = ("_protos", "_type", "_values", "name")

    def __init__(self, name: str, given: Any, value_type: ValueType) -> None:
        """Convert as Feast does.

        :raises Exception: whatever Feast raises about values that are not of the declared type.
        """
        self.name = name
        self._type = value_type
        self._values = _unchanged(given, value_type)
        self._protos: list[Any] = [] if self._values else python_values_to_proto_values(given, value_type)

    def __len__(self) -> int:
        return len(self._values or self._protos)

    def values(self, value_type: ValueType | None) -> list[Any]:
        """Python values; ``value_type`` is what the response knows of the name, mostly nothing."""
        if self._values:
            return self._values[:]
        return [feast_value_type_to_python_type(value, value_type) for value in self._protos]

    def lists(self) -> pa.ListArray | None:
        """The values as an Arrow array if they are lists of numbers."""
        return None if self._values else number_lists(self._protos, None)

    def wire(self) -> bytes:
        """The values as ``values`` of a ``FeatureVector`` on the wire."""
        protos = python_values_to_proto_values(self._values, self._type) if self._values else self._protos
        return wire.messages([proto.SerializeToString() for proto in protos])


@dataclass(frozen=True, slots=True)
class Transform:
    """One on-demand view of a request: the names of the results that are wanted, and the columns it must not see.

    ``pairs`` are the short and the full name of every feature that it is made from: its function finds them under both.
    """

    view: Any
    name: str
    wanted: frozenset[str]
    hidden: frozenset[str]
    types: dict[str, ValueType]
    pairs: tuple[tuple[str, str], ...]

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What ``OnDemandFeatureView.transform_dict`` gives, which checks the type of every value on its way."""
        given, added = inputs.copy(), []
        for short, full in self.pairs:
            if full in inputs:
                given[short] = inputs[full]
                added.append(short)
            elif short in inputs:
                given[full] = inputs[short]
                added.append(full)
        transformation = self.view.feature_transformation
        made = transformation.transform_singleton if self.view.singleton else transformation.transform
        results: dict[str, Any] = made(given)
        for name in added:
            results.pop(name, None)
        return results


def transforms(views: Sequence[Any], references: Sequence[str], full_names: bool) -> tuple[Transform, ...] | None:
    """The on-demand views to compute for a request, in Feast's order; None where only Feast's own path will do."""
    by_name = {(view.projection.name_alias if view.projection else None) or view.name: view for view in views}
    wanted: dict[str, list[str]] = {}
    for name, feature in _split(references):
        if name in by_name:
            prefix = f"{by_name[name].projection.name_to_use()}__" if full_names else ""
            wanted.setdefault(name, []).append(prefix + feature)
    made = []
    for name, results in wanted.items():
        view = by_name[name]
        if view.write_to_online_store:
            continue
        types = {field.name: field.dtype.to_value_type() for field in view.schema}
        if view.mode not in _MODES:
            return None
        pairs = tuple(
            (field.name, f"{projection.name}__{field.name}")
            for projection in view.source_feature_view_projections.values()
            for field in projection.features
        )
        hidden = _hidden(view, views, references, by_name)
        made.append(Transform(view, name, frozenset(results), hidden, types, pairs))
    return tuple(made)


def compute(needed: Iterable[Transform], inputs: LazyResponse, full_names: bool) -> list[Computed]:
    """Run the on-demand views over what was read.

    The first that takes a dictionary, and the first that takes a table, sees what those before it have computed; it is
    the same for those after it. So it is in Feast.

    :raises Exception: whatever their functions raise, and Feast about their results.
    """
    as_dict: dict[str, Any] | None = None
    as_table: pa.Table | None = None
    results: list[Computed] = []
    for transform in needed:
        view = transform.view
        started = time.monotonic()
        if view.mode == "python":
            if as_dict is None:
                as_dict = inputs.seeing(results).to_dict()
            if view.aggregations:
                as_dict = utils._apply_aggregations_to_response(as_dict, view.aggregations, view.entities, view.mode)
                continue
            seen = {name: values for name, values in as_dict.items() if name not in transform.hidden}
            made: Any = transform.run(seen)
            names = list(made)
        else:
            if as_table is None:
                as_table = inputs.seeing(results).to_arrow()
            if view.aggregations:
                as_table = utils._apply_aggregations_to_response(as_table, view.aggregations, view.entities, view.mode)
                continue
            shown = as_table
            if view.mode == "pandas":
                shown = as_table.select([name for name in as_table.column_names if name not in transform.hidden])
            made = view.transform_arrow(shown, full_names)
            names = made.column_names
        _track(transform, time.monotonic() - started)
        results += [_result(transform, name, made[name]) for name in names if name in transform.wanted]
    return results


def _result(transform: Transform, name: str, given: Any) -> Computed:
    if not isinstance(given, list):
        given = [given] if transform.view.mode == "python" else given.to_numpy()
    return Computed(name, given, transform.types.get(name, ValueType.UNKNOWN))


def _hidden(view: Any, views: Sequence[Any], references: Sequence[str], by_name: dict[str, Any]) -> frozenset[str]:
    """The columns of views that are no sources of this one: they are in the answer, but not for its function."""
    declared = {projection.name for projection in view.source_feature_view_projections.values()}
    hidden = set()
    for name, feature in _split(references):
        if name not in by_name and name not in declared:
            hidden |= {feature, f"{name}__{feature}"}
    for other in views:
        for projection in other.source_feature_view_projections.values():
            if projection.name not in declared:
                for field in projection.features:
                    hidden |= {field.name, f"{projection.name}__{field.name}"}
    return frozenset(hidden)


def _split(references: Sequence[str]) -> list[tuple[str, str]]:
    """View and feature of references as Feast takes them apart here: without the version."""
    parsed = [utils._parse_feature_ref(reference) for reference in references]
    return [(view, feature) for view, _, feature in parsed]


def _unchanged(given: Any, value_type: ValueType) -> list[Any] | None:
    """The values where it is known what the way through protobuf makes of them; None where it is not."""
    plain = _PLAIN.get(value_type)
    if plain is None or len(given) == 0:
        return None
    is_exact = isinstance(given, np.ndarray) and given.dtype in (np.float64, np.int64)
    values: list[Any] = given.tolist() if is_exact else list(given)
    kinds = {*map(type, values)} - {type(None)}
    if kinds != {plain}:
        return None
    if plain is float:
        values = [None if value != value else value for value in values]
        return _rounded(values) if value_type is ValueType.FLOAT else values
    if plain is int:
        least, most = _RANGES[value_type]
        numbers = [value for value in values if value is not None]
        return values if least <= min(numbers) and max(numbers) <= most else None
    return values


def _rounded(values: list[Any]) -> list[Any] | None:
    """Values as float32 has them."""
    numbers = [value for value in values if value is not None]
    if any(abs(value) > _MOST_FLOAT for value in numbers):
        return None
    rounded = iter(np.array(numbers, np.float32).tolist())
    return [None if value is None else next(rounded) for value in values]


def _track(transform: Transform, seconds: float) -> None:
    """Feed Feast's own metrics of a view that asks for it, where they are on."""
    metrics = sys.modules.get("feast.metrics")
    if metrics is not None and metrics._config.online_features and transform.view.track_metrics:
        metrics.track_transformation(transform.name, transform.view.mode, seconds)
