"""On-demand views, computed from what was read without a detour through protobuf.

Feast's own transformations run, on the dictionaries and tables that Feast would hand them. Replaced is only what
surrounds them in ``feast.utils``: which columns a function may see, and which of its results were requested.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from feast.value_type import ValueType

from feast_quorin import feast_private
from feast_quorin.feast_versions import ON_DEMAND, has
from feast_quorin.read.computed import Computed
from feast_quorin.read.resolved import Transform

if TYPE_CHECKING:
    import pyarrow as pa

    from feast_quorin.read.response import LazyResponse

_MODES = ("python", "pandas", "substrait")


def transforms(views: Sequence[Any], references: Sequence[str], full_names: bool) -> tuple[Transform, ...] | None:
    """The on-demand views to compute for a request, in Feast's order; None if only Feast's generic path will do."""
    if not views:
        return ()
    if not has(ON_DEMAND):
        return None
    by_name = {(view.projection.name_alias if view.projection else None) or view.name: view for view in views}
    split = [feast_private.split_reference(reference) for reference in references]
    requested: dict[str, list[str]] = {}
    for name, feature in split:
        if name in by_name:
            prefix = f"{by_name[name].projection.name_to_use()}__" if full_names else ""
            requested.setdefault(name, []).append(prefix + feature)
    computed = []
    for name, results in requested.items():
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
        hidden = _hidden(view, views, [pair for pair in split if pair[0] not in by_name])
        computed.append(Transform(view, name, frozenset(results), hidden, types, pairs))
    return tuple(computed)


def compute(transforms: Iterable[Transform], inputs: LazyResponse, full_names: bool) -> list[Computed]:
    """Run the on-demand views over what was read.

    As in Feast, the first view that takes a dictionary, and the first that takes a table, sees the results of the views
    before it; later ones see the same as that first one.

    :raises Exception: what the views' functions raise, and Feast about their results.
    """
    as_dict: dict[str, Any] | None = None
    as_table: pa.Table | None = None
    computed: list[Computed] = []
    for transform in transforms:
        view = transform.view
        started = time.monotonic()
        if view.mode == "python":
            if as_dict is None:
                as_dict = inputs.with_computed(computed).to_dict()
            if view.aggregations:
                as_dict = feast_private.apply_aggregations(as_dict, view)
                continue
            visible = {name: values for name, values in as_dict.items() if name not in transform.hidden}
            results: Any = _run(transform, visible)
            names = list(results)
        else:
            if as_table is None:
                as_table = inputs.with_computed(computed).to_arrow()
            if view.aggregations:
                as_table = feast_private.apply_aggregations(as_table, view)
                continue
            table = as_table
            if view.mode == "pandas":
                table = as_table.select([name for name in as_table.column_names if name not in transform.hidden])
            results = view.transform_arrow(table, full_names)
            names = results.column_names
        _track(transform, time.monotonic() - started)
        computed += [_converted(transform, name, results[name]) for name in names if name in transform.results]
    return computed


def _run(transform: Transform, inputs: dict[str, Any]) -> dict[str, Any]:
    """What ``OnDemandFeatureView.transform_dict`` returns, without its check of every value's type."""
    columns, added = inputs.copy(), []
    for short, full in transform.pairs:
        if full in inputs:
            columns[short] = inputs[full]
            added.append(short)
        elif short in inputs:
            columns[full] = inputs[short]
            added.append(full)
    transformation = transform.view.feature_transformation
    function = transformation.transform_singleton if transform.view.singleton else transformation.transform
    results: dict[str, Any] = function(columns)
    for name in added:
        results.pop(name, None)
    return results


def _converted(transform: Transform, name: str, results: Any) -> Computed:
    if not isinstance(results, list):
        results = [results] if transform.view.mode == "python" else results.to_numpy()
    return Computed(name, results, transform.types.get(name, ValueType.UNKNOWN))


def _hidden(view: Any, views: Sequence[Any], stored: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The columns of views that are not sources of this one: in the response, but not for its function. ``stored`` are
    the requested features of views that are not on demand.
    """
    sources = {projection.name for projection in view.source_feature_view_projections.values()}
    hidden = set()
    for name, feature in stored:
        if name not in sources:
            hidden |= {feature, f"{name}__{feature}"}
    for other in views:
        for projection in other.source_feature_view_projections.values():
            if projection.name not in sources:
                for field in projection.features:
                    hidden |= {field.name, f"{projection.name}__{field.name}"}
    return frozenset(hidden)


def _track(transform: Transform, seconds: float) -> None:
    """Report the time to Feast's own metrics, if they are on and the view asks for it."""
    metrics = feast_private.online_metrics()
    if metrics is not None and transform.view.track_metrics:
        metrics.track_transformation(transform.name, transform.view.mode, seconds)
