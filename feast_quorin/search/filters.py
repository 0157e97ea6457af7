"""Feast's metadata filters, evaluated on Arrow columns.

A null passes no comparison, as in SQL. Numbers, booleans, strings, bytes and timestamps can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_quorin.convert.codecs import codec_for
from feast_quorin.convert.entity_ids import key_columns
from quorin import assembly
from quorin.errors import InvalidRowError

if TYPE_CHECKING:
    from feast.filter_models import ComparisonFilter
    from feast.value_type import ValueType

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


class RowFilter:
    """Selects the rows of a view that pass Feast's ``filters`` on features and join keys; with None, all rows pass.

    ``keys`` has the types of the join keys.

    :raises InvalidRowError: for a name that the view does not have, or one whose values cannot be compared.
    """

    def __init__(self, view: StoredView, keys: Mapping[str, ValueType], filters: Any) -> None:
        self._view = view
        self._keys = keys
        self._filters = filters
        self._names = set() if filters is None else set(self._names_in(filters))
        self._stored = {name: view.features[name].field for name in sorted(self._names & view.features.keys())}

    @property
    def fields(self) -> list[str]:
        """The engine's fields that :meth:`__call__` reads from a batch, beside its ids."""
        return list(self._stored.values())

    def __call__(self, rows: pa.RecordBatch) -> pa.Array:
        """A boolean array without nulls: whether each row of a batch passes. A field that is not in the batch is null.

        :raises InvalidRowError: if a filter's value cannot be compared with the rows' values.
        """
        if self._filters is None:
            return pa.repeat(pa.scalar(True), rows.num_rows)
        columns = {
            name: rows.column(field) if field in rows.schema.names else pa.nulls(rows.num_rows)
            for name, field in self._stored.items()
        }
        if self._names - columns.keys():
            columns |= key_columns(rows.column("entity_id"), self._keys)
        return self._evaluate(self._filters, columns, rows.num_rows)

    def of_entities(self, segment: Segment, ids: pa.Array) -> pa.Array:
        """A boolean array: whether each entity has a row in the segment that passes."""
        in_segment = {field.name for field in segment.schema.fields}
        kept = [field for field in self.fields if field in in_segment]
        parts = []
        for start in range(0, len(ids), _READ_ROWS):
            batch = assembly.read(segment, ids.slice(start, _READ_ROWS), kept)
            parts.append(pc.and_(self(batch), batch.column("found")))
        return pa.concat_arrays(parts) if parts else pa.array([], pa.bool_())

    def _names_in(self, filters: Any) -> list[str]:
        from feast.filter_models import ComparisonFilter, CompoundFilter  # Feast has them since 0.66.

        if isinstance(filters, CompoundFilter):
            return [name for part in filters.filters for name in self._names_in(part)]
        if not isinstance(filters, ComparisonFilter):
            raise InvalidRowError(f"expected a ComparisonFilter or a CompoundFilter, got {filters!r}")
        name, features = filters.key, self._view.features
        if name not in features and name not in self._keys:
            raise InvalidRowError(
                f"filter on {name!r}: view {self._view.name!r} has no such feature, it has {list(features)} and "
                f"the join keys {list(self._keys)}"
            )
        codec = features[name].codec if name in features else codec_for(self._keys[name])
        if not codec.is_comparable:
            raise InvalidRowError(
                f"filter on {name!r} of view {self._view.name!r}: values of its type cannot be compared"
            )
        return [name]

    def _evaluate(self, filters: Any, columns: dict[str, pa.Array], rows: int) -> pa.Array:
        if hasattr(filters, "filters"):  # a CompoundFilter
            combined = pa.array([True] * rows, pa.bool_())
            parts = [self._evaluate(part, columns, rows) for part in filters.filters]
            for index, part in enumerate(parts):
                combined = part if index == 0 else (pc.and_ if filters.type == "and" else pc.or_)(combined, part)
            return combined
        column = columns[filters.key]
        if pa.types.is_null(column.type):
            return pa.array([False] * rows, pa.bool_())
        try:
            return pc.fill_null(_compare(column, filters), False)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InvalidRowError(
                f"filter on {filters.key!r} of view {self._view.name!r}: {filters.value!r} cannot be compared with "
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
    # With an empty list there is no comparison that would have made nulls fail.
    passes = is_in if filters.type == "in" else pc.invert(is_in)
    return pc.and_(passes, column.is_valid())


def _alike(column: pa.Array, value: pa.Scalar) -> tuple[pa.Array, pa.Scalar]:
    """Both sides of a comparison. A boolean that is compared with a number counts as 0 or 1."""
    if pa.types.is_boolean(column.type) and not pa.types.is_boolean(value.type):
        return column.cast(pa.int8()), value
    if pa.types.is_boolean(value.type) and not pa.types.is_boolean(column.type):
        return column, value.cast(pa.int8())
    return column, value
