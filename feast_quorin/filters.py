"""Feast's metadata filters over Arrow columns: which rows pass.

A null passes no comparison, as in SQL. Numbers, booleans, strings, bytes and timestamps can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from feast.filter_models import ComparisonFilter, CompoundFilter

from quorin import assembly
from quorin.errors import InvalidRowError

if TYPE_CHECKING:
    from feast_quorin.views import StoredView
    from quorin.shm import Segment

_COMPARE = {
    "eq": pc.equal,
    "ne": pc.not_equal,
    "gt": pc.greater,
    "gte": pc.greater_equal,
    "lt": pc.less,
    "lte": pc.less_equal,
}
_READ_ROWS = 65_536


def matching(view: StoredView, filters: Any, segment: Segment | None, rows: Any) -> pa.Array:
    """Which rows pass: a boolean array without nulls. ``rows`` are ids of a segment, or, without one, a batch of them.

    :raises InvalidRowError: for a feature that the view does not have, or a value that it cannot be compared with.
    """
    names = sorted(set(_fields(view, filters)))
    if segment is None:
        columns = {name: rows.column(name) if name in rows.schema.names else pa.nulls(rows.num_rows) for name in names}
        return _evaluate(view, filters, columns, rows.num_rows)
    stored = {field.name for field in segment.schema.fields}
    kept = [name for name in names if name in stored]
    parts = []
    for start in range(0, len(rows), _READ_ROWS):
        batch = assembly.read(segment, rows.slice(start, _READ_ROWS), kept)
        columns = {name: batch.column(name) if name in kept else pa.nulls(batch.num_rows) for name in names}
        parts.append(pc.and_(_evaluate(view, filters, columns, batch.num_rows), batch.column("found")))
    return pa.concat_arrays(parts) if parts else pa.array([], pa.bool_())


def _fields(view: StoredView, filters: Any) -> list[str]:
    if isinstance(filters, CompoundFilter):
        return [name for part in filters.filters for name in _fields(view, part)]
    if not isinstance(filters, ComparisonFilter):
        raise InvalidRowError(f"expected a ComparisonFilter or a CompoundFilter, got {filters!r}")
    if filters.key not in view.features:
        raise InvalidRowError(
            f"filter on {filters.key!r}: view {view.name!r} has no such feature, it has {list(view.features)}"
        )
    if not view.features[filters.key].codec.is_comparable:
        raise InvalidRowError(f"filter on {filters.key!r} of view {view.name!r}: values of its type have no order")
    return [view.features[filters.key].field]


def _evaluate(view: StoredView, filters: Any, columns: dict[str, pa.Array], rows: int) -> pa.Array:
    if isinstance(filters, CompoundFilter):
        combined = pa.array([True] * rows, pa.bool_())
        parts = [_evaluate(view, part, columns, rows) for part in filters.filters]
        for index, part in enumerate(parts):
            combined = part if index == 0 else (pc.and_ if filters.type == "and" else pc.or_)(combined, part)
        return combined
    column = columns[view.features[filters.key].field]
    if pa.types.is_null(column.type):
        return pa.array([False] * rows, pa.bool_())
    try:
        return pc.fill_null(_compare(column, filters), False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidRowError(
            f"filter on {filters.key!r} of view {view.name!r}: {filters.value!r} cannot be compared with "
            f"values of type {column.type}: {error}"
        ) from None


def _compare(column: pa.Array, filters: ComparisonFilter) -> pa.Array:
    if filters.type not in ("in", "nin"):
        return _COMPARE[filters.type](*_alike(column, pa.scalar(filters.value)))
    if not isinstance(filters.value, list):
        raise TypeError(f"{filters.type!r} requires a list")
    is_in = pa.array([False] * len(column), pa.bool_())
    for value in filters.value:
        is_in = pc.or_(is_in, pc.equal(*_alike(column, pa.scalar(value))))
    # Without values to compare with, nulls have to be told apart by themselves.
    wanted = is_in if filters.type == "in" else pc.invert(is_in)
    return pc.and_(wanted, column.is_valid())


def _alike(column: pa.Array, value: pa.Scalar) -> tuple[pa.Array, pa.Scalar]:
    """Booleans beside numbers count as 0 and 1."""
    if pa.types.is_boolean(column.type) and not pa.types.is_boolean(value.type):
        return column.cast(pa.int8()), value
    if pa.types.is_boolean(value.type) and not pa.types.is_boolean(column.type):
        return column, value.cast(pa.int8())
    return column, value
