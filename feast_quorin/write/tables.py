"""Arrow tables from Feast's offline stores and frames as the engine's record batches, column by column.

The result equals, value for value, what Feast's conversion to ``Value`` protos would store. Columns of common Arrow
types are used as they are or cast by Arrow's kernels; all others go through Feast's conversion. Numbers for ``Float64``
may have any width, where Feast accepts only ``int64`` and ``float64``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feast_quorin.convert.entity_ids import (
    EMPTY,
    check_length,
    component,
    entity_id_column,
    escaped_column,
    numbers_column,
)
from feast_quorin.convert.locating import REFUSALS, Rows
from feast_quorin.convert.times import BOUNDS, to_ns
from feast_quorin.feast_private import check_vector_lengths
from quorin.errors import InvalidRowError

if TYPE_CHECKING:
    from feast_quorin.convert.codecs import Codec
    from feast_quorin.views import StoredView

_FLOATS = {ValueType.FLOAT: pa.float32(), ValueType.DOUBLE: pa.float64()}
_INTEGERS = {ValueType.INT32: pa.int32(), ValueType.INT64: pa.int64()}
_BYTES = {ValueType.BYTES, ValueType.PDF_BYTES, ValueType.IMAGE_BYTES}
_NUMBER_LISTS = {
    ValueType.FLOAT_LIST: pa.float32(),
    ValueType.DOUBLE_LIST: pa.float64(),
    ValueType.INT32_LIST: pa.int32(),
    ValueType.INT64_LIST: pa.int64(),
}
NO_TIME = -(2**63)
"""Stands for a null time, as in NumPy and pandas; it sorts before all times."""


class TableReader:
    """Converts tables of one Feast view to record batches: ``reader(table)``.

    ``view`` is the stored view, ``table`` Feast's object. On-demand views that are computed when they are written have
    no event time: it is the time of the write, and missing columns are null.
    """

    def __init__(self, view: StoredView, table: Any) -> None:
        self._view = view
        self._features = {field.name: field.dtype.to_value_type() for field in table.features}
        self._keys = {entity.name: entity.dtype.to_value_type() for entity in table.entity_columns}
        self._is_on_demand = getattr(table, "source_feature_view_projections", None) is not None
        source = None if self._is_on_demand else table.batch_source
        if source is None and not self._is_on_demand:
            raise InvalidRowError(f"feature view {table.name!r} has no batch source, which names its time column")
        self._time = "" if source is None else source.timestamp_field
        self._created = None if source is None else source.created_timestamp_column or None
        self._table = table

    @property
    def keys(self) -> list[str]:
        """The names of the join key columns."""
        return list(self._keys)

    def check(self, table: pa.Table) -> None:
        """:raises ValueError: for vectors whose lengths differ, or differ from the declared one."""
        check_vector_lengths(table, self._table)

    def newest(self, table: pa.Table) -> pa.Table:
        """The newest row of each entity: by event time, then by ``created``, then by position. In any order."""
        if self._is_on_demand or not self._keys or table.num_rows < 2:
            return table
        rows, columns = self._rows(table), [self._time]
        if self._created is not None and self._created in table.column_names:
            columns.insert(0, self._created)
        times = [self._times(rows, table, column) for column in columns]
        # Compared, not subtracted: the difference of two times can overflow.
        if not all(bool((column[1:] >= column[:-1]).all()) for column in times):
            table = table.take(pa.array(np.lexsort(times)))
        keys = pa.table({name: _decoded(self._column(table, name)) for name in self._keys})
        repeated = keys.to_pandas().duplicated(keep="last").to_numpy()
        return table.filter(pa.array(~repeated)) if repeated.any() else table

    def __call__(self, table: pa.Table, first: int = 0) -> pa.RecordBatch:
        """A table's rows as ``entity_id``, ``event_time_ns``, the created time if the view stores it, and the fields of
        the features. Errors number the rows from ``first``.

        :raises ValueError: for a missing column. :raises InvalidRowError: for a key, time or value that does not fit;
            the text names view, row, join keys and feature. :raises EntityIdTooLongError: for a long key.
        """
        rows = self._rows(table, first)
        if self._is_on_demand:
            times = np.full(table.num_rows, to_ns(datetime.now(UTC)), np.int64)
        else:
            times = self._times(rows, table, self._time)
        names, arrays = ["entity_id", "event_time_ns"], [self._ids(rows, table), pa.array(times)]
        if self._view.schema.tie_breaker is not None:
            names.append(self._view.schema.tie_breaker)
            arrays.append(self._created_times(rows, table))
        for feature, kind in self._features.items():
            stored = self._view.features[feature]
            names.append(stored.field)
            convert = partial(feature_column, kind=kind, codec=stored.codec)
            arrays.append(rows.convert(f"feature {feature!r}", self._column(table, feature), convert))
        return pa.RecordBatch.from_arrays(arrays, names)

    def _rows(self, table: pa.Table, first: int = 0) -> Rows:
        keys = [name for name in self._keys if name in table.column_names]

        def key_values(row: int) -> dict[str, Any]:
            return {name: table.column(name)[row].as_py() for name in keys}

        return Rows(self._view.name, key_values, lambda row: first + row)

    def _ids(self, rows: Rows, table: pa.Table) -> pa.Array:
        if not self._keys:
            return pa.repeat(EMPTY, table.num_rows)
        columns = {
            name: rows.convert("", self._column(table, name), partial(key_column, name, kind=kind))
            for name, kind in self._keys.items()
        }
        return rows.convert("", entity_id_column(columns), _short_ids)

    def _times(self, rows: Rows, table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        is_created = name == self._created
        what = f"{'created' if is_created else 'event'} time {name!r}"
        return rows.convert(what, self._column(table, name), partial(times_ns, nulls_first=is_created))

    def _created_times(self, rows: Rows, table: pa.Table) -> pa.Array:
        """The created times in nanoseconds; null if a row has none."""
        if self._created is None or self._created not in table.column_names:
            return pa.nulls(table.num_rows, pa.int64())
        times = self._times(rows, table, self._created)
        return pa.array(times, mask=times == NO_TIME)

    def _column(self, table: pa.Table, name: str) -> pa.Array:
        if name in table.column_names:
            column = table.column(name)
            return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if self._is_on_demand:
            return pa.nulls(table.num_rows)
        raise ValueError(f"column {name!r} of view {self._view.name!r} not found, the table has {table.column_names}")


def feature_column(array: pa.Array, kind: ValueType, codec: Codec) -> pa.Array:
    """A column of values of a Feast type as an Arrow array of its field's type.

    :raises InvalidRowError: for a value that does not fit.
    """
    array = _decoded(array)
    if pt.is_null(array.type):
        return array
    try:
        fast = _without_protos(array, kind)
        if fast is not None:
            return _cast(fast, codec.arrow_type)
        return codec.to_arrow(python_values_to_proto_values(array.to_numpy(zero_copy_only=False), kind))
    except InvalidRowError:
        raise
    except REFUSALS as error:
        raise InvalidRowError(f"expected {kind.name}, got a column of {array.type}: {error}") from error


def key_column(name: str, array: pa.Array, kind: ValueType) -> pa.Array:
    """The values of one join key as components of entity ids.

    :raises InvalidRowError: for a null, a value that is not a scalar of the key's type, and an integer out of range;
        the text names the join key.
    """
    array = _decoded(array)
    try:
        if not array.null_count:
            if kind in _INTEGERS and pt.is_integer(array.type):
                return numbers_column(array.cast(_INTEGERS[kind]))
            if kind is ValueType.STRING and _is_text(array.type):
                return escaped_column(array.cast(pa.string()))
        values = python_values_to_proto_values(array.to_numpy(zero_copy_only=False), kind)
        return pa.array([component(value) for value in values], pa.string())
    except REFUSALS as error:
        raise InvalidRowError(f"join key {name!r}: expected {kind.name}: {error}") from None


def _short_ids(ids: pa.Array) -> pa.Array:
    check_length(pc.max(pc.binary_length(ids)).as_py() or 0)
    return ids


def _decoded(array: pa.Array) -> pa.Array:
    """Dictionary arrays as their values, and string and binary views as arrays that all of Arrow's kernels take."""
    source = array.type
    if pt.is_dictionary(source):
        return _decoded(array.dictionary).take(array.indices)
    if pt.is_string_view(source):
        return array.cast(pa.large_string())
    if pt.is_binary_view(source):
        return array.cast(pa.large_binary())
    if _is_list(source) and pt.is_string_view(source.value_type):
        return array.cast(pa.large_list(pa.large_string()))
    if _is_list(source) and pt.is_binary_view(source.value_type):
        return array.cast(pa.large_list(pa.large_binary()))
    return array


def _without_protos(array: pa.Array, kind: ValueType) -> pa.Array | None:
    """The array, or a cast of it, if Feast's conversion of each value would return the same; else None."""
    source = array.type
    if kind in _FLOATS and pt.is_floating(source):
        return _nan_as_null(array.cast(_FLOATS[kind]))
    if kind in _FLOATS and pt.is_integer(source):
        return array.cast(_FLOATS[kind], safe=False)
    if kind in _INTEGERS and pt.is_integer(source):
        return array
    if kind in _INTEGERS and pt.is_floating(source):
        return pc.trunc(_nan_as_null(array.cast(pa.float64())))  # Arrow has no kernels for float16.
    if kind is ValueType.BOOL and pt.is_boolean(source):
        return array
    if kind is ValueType.STRING and _is_text(source):
        return array
    if kind in _BYTES and (pt.is_binary(source) or pt.is_large_binary(source)):
        return array
    if kind is ValueType.UNIX_TIMESTAMP and pt.is_timestamp(source):
        # A null becomes NumPy's "not a time", which is what Feast stores for a null.
        return pa.array(array.to_numpy(zero_copy_only=False).astype("datetime64[s]").astype(np.int64))
    if _is_list(source) and not array.flatten().null_count:
        return _list_without_protos(array, kind)
    return None


def _cast(array: pa.Array, target: pa.DataType) -> pa.Array:
    """The array in its field's type; lists as they are, if their elements can be cast.

    :raises InvalidRowError, pyarrow.ArrowInvalid: for a number out of range.
    """
    if not pt.is_list(target):
        return array.cast(target)
    if array.type.value_type != target.value_type:
        elements = array.flatten()  # Of this slice only: casting the array would cast all that it is a slice of.
        cast = elements.cast(target.value_type)
        if pt.is_floating(target.value_type):
            overflowed = pc.and_(pc.is_inf(cast), pc.is_finite(elements))
            if pc.any(overflowed).as_py():
                raise InvalidRowError(f"expected {target.value_type} numbers, got {elements.filter(overflowed)[0]}")
    return array


def _list_without_protos(array: pa.Array, kind: ValueType) -> pa.Array | None:
    item, target = array.type.value_type, _NUMBER_LISTS.get(kind)
    if target is not None and pt.is_floating(target):
        is_same_kind = pt.is_floating(item)
    elif target is not None:
        is_same_kind = pt.is_integer(item)
    else:
        is_same_kind = (kind is ValueType.STRING_LIST and _is_text(item)) or (
            kind is ValueType.BOOL_LIST and pt.is_boolean(item)
        )
    return array if is_same_kind else None


def _nan_as_null(array: pa.Array) -> pa.Array:
    """NaN as null: Feast treats a scalar NaN as a null."""
    nans = pc.is_nan(array)
    return pc.if_else(nans, pa.scalar(None, array.type), array) if pc.any(nans).as_py() else array


def times_ns(column: pa.Array, *, nulls_first: bool = False) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A column of times, in any form that pandas parses, as nanoseconds since the epoch. Naive times are UTC. With
    ``nulls_first`` nulls become :data:`NO_TIME`.

    :raises InvalidRowError: for another null, a value that is not a time, or a time out of the range of 64 bits.
    """
    if not pt.is_timestamp(column.type):
        column = _parsed(column)
    try:
        nanoseconds = column.cast(pa.timestamp("ns", column.type.tz)).view(pa.int64())
    except pa.ArrowInvalid:
        raise InvalidRowError(f"expected a time {BOUNDS}, got {_shown(column)}") from None
    times = np.asarray(nanoseconds.fill_null(NO_TIME).to_numpy(zero_copy_only=False), np.int64)
    if not nulls_first and (times == NO_TIME).any():
        raise InvalidRowError("expected a time, got null")
    return times


def _parsed(column: pa.Array) -> pa.Array:
    import pandas as pd

    values = column.to_numpy(zero_copy_only=False)
    try:
        return pa.array(pd.to_datetime(values, utc=True))
    except pd.errors.OutOfBoundsDatetime:
        raise InvalidRowError(f"expected a time {BOUNDS}, got {values[0]}") from None


def _shown(column: pa.Array) -> str:
    """The first timestamp of a column; its number if Python's calendar does not go so far."""
    try:
        return str(column[0].as_py())
    except (ValueError, OverflowError):
        return f"{column.view(pa.int64())[0]} {column.type}"


def _is_text(source: pa.DataType) -> bool:
    return bool(pt.is_string(source) or pt.is_large_string(source))


def _is_list(source: pa.DataType) -> bool:
    return bool(pt.is_list(source) or pt.is_large_list(source) or pt.is_fixed_size_list(source))


def map_columns(table: pa.Table, mapping: Mapping[str, str] | None) -> pa.Table:
    """The table with its columns renamed by a source's field mapping."""
    return table.rename_columns([mapping.get(name, name) for name in table.column_names]) if mapping else table
