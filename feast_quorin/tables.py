"""Arrow tables, as Feast's offline stores and frames give them, as the engine's record batches, column by column.

What comes out is what Feast's own conversion into ``Value`` protos would store, value for value. Columns of the usual
Arrow types are taken as they stand or cast by Arrow's kernels; any other goes through Feast's conversion, so that odd
types mean what they mean in Feast. Numbers for ``Float64`` may have any width, where Feast refuses all but ``int64``
and ``float64``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from feast import utils
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feast_quorin.keys import EMPTY, component, entity_id_column, escaped_column, numbers_column
from feast_quorin.times import to_ns
from quorin.errors import InvalidRowError

if TYPE_CHECKING:
    from feast_quorin.values import Codec
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
_BEFORE_ALL_TIMES = -(2**63)


class TableReader:
    """Turns tables of one Feast view into record batches: ``reader(table)`` for each of them.

    ``view`` is how the view is stored, ``table`` Feast's object. On-demand views that are computed when they are
    written have no event time of their own: theirs is the time of the write, and columns that are not there are null.
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
        """The columns of the entity key."""
        return list(self._keys)

    def check(self, table: pa.Table) -> None:
        """:raises ValueError: for vectors whose lengths differ, or differ from the declared one."""
        utils._validate_vector_field_lengths(table, self._table)

    def newest(self, table: pa.Table) -> pa.Table:
        """One row an entity: of the newest event time, then of the newest ``created``, then the last; in any order."""
        if self._is_on_demand or not self._keys or table.num_rows < 2:
            return table
        for column in (self._created, self._time):
            if column in table.column_names:
                times = _times(table.column(column), nulls_first=column == self._created)
                if not bool((np.diff(times) >= 0).all()):
                    table = table.take(pa.array(np.argsort(times, kind="stable")))
        keys = pa.table({name: _plain(self._column(table, name)) for name in self._keys})
        repeated = keys.to_pandas().duplicated(keep="last").to_numpy()
        return table.filter(pa.array(~repeated)) if repeated.any() else table

    def __call__(self, table: pa.Table) -> pa.RecordBatch:
        """A table's rows as ``entity_id``, ``event_time_ns``, the created time where the view keeps it, and the fields
        of the features.

        :raises ValueError: for a column that is not there. :raises InvalidRowError: for a value that does not fit; the
            text names the feature and the view.
        """
        if self._is_on_demand:
            times = np.full(table.num_rows, to_ns(datetime.now(UTC)), np.int64)
        else:
            times = _times(self._column(table, self._time))
        names, arrays = ["entity_id", "event_time_ns"], [self._ids(table), pa.array(times)]
        if self._view.schema.tie_breaker is not None:
            names.append(self._view.schema.tie_breaker)
            arrays.append(self._created_times(table))
        for feature, kind in self._features.items():
            stored = self._view.features[feature]
            names.append(stored.field)
            try:
                arrays.append(feature_column(self._column(table, feature), kind, stored.codec))
            except InvalidRowError as error:
                raise InvalidRowError(f"feature {feature!r} of view {self._view.name!r}: {error}") from None
        return pa.RecordBatch.from_arrays(arrays, names)

    def _ids(self, table: pa.Table) -> pa.Array:
        if not self._keys:
            return pa.repeat(EMPTY, table.num_rows)
        columns = {name: key_column(name, self._column(table, name), kind) for name, kind in self._keys.items()}
        return entity_id_column(self._view.name, columns)

    def _created_times(self, table: pa.Table) -> pa.Array:
        """The created times in nanoseconds, null where they are unknown."""
        if self._created not in table.column_names:
            return pa.nulls(table.num_rows, pa.int64())
        times = _times(table.column(self._created), nulls_first=True)
        return pa.array(times, mask=times == _BEFORE_ALL_TIMES)

    def _column(self, table: pa.Table, name: str) -> pa.Array:
        if name in table.column_names:
            column = table.column(name)
            return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if self._is_on_demand:
            return pa.nulls(table.num_rows)
        raise ValueError(f"column {name!r} of view {self._view.name!r} not found, the table has {table.column_names}")


def feature_column(array: pa.Array, kind: ValueType, codec: Codec) -> pa.Array:
    """A column of values of a Feast type as an Arrow array that the engine takes for its field.

    :raises InvalidRowError: for a value that does not fit.
    """
    array = _plain(array)
    if pt.is_null(array.type):
        return array
    quick = _quick(array, kind)
    if quick is not None:
        return quick
    try:
        return codec.to_arrow(python_values_to_proto_values(array.to_numpy(zero_copy_only=False), kind))
    except InvalidRowError:
        raise
    except (TypeError, ValueError, AssertionError, OverflowError) as error:
        raise InvalidRowError(f"expected {kind.name}, got a column of {array.type}: {error}") from error


def key_column(name: str, array: pa.Array, kind: ValueType) -> pa.Array:
    """The values of one join key as components of entity ids.

    :raises ValueError: for a null or a value that is no scalar; the text names the join key.
    :raises InvalidRowError: for an integer that is out of range; the text names it and the join key.
    """
    array = _plain(array)
    if not array.null_count:
        if kind in _INTEGERS and pt.is_integer(array.type):
            try:
                return numbers_column(array.cast(_INTEGERS[kind]))
            except pa.ArrowInvalid as error:
                raise InvalidRowError(f"join key {name!r}: expected {kind.name}: {error}") from None
        if kind is ValueType.STRING and _is_text(array.type):
            return escaped_column(array.cast(pa.string()))
    values = python_values_to_proto_values(array.to_numpy(zero_copy_only=False), kind)
    return pa.array([component(name, value) for value in values], pa.string())


def _plain(array: pa.Array) -> pa.Array:
    """A dictionary as its values, and views of texts and bytes as arrays that all of Arrow's kernels take."""
    source = array.type
    if pt.is_dictionary(source):
        return _plain(array.dictionary).take(array.indices)
    if pt.is_string_view(source):
        return array.cast(pa.large_string())
    if pt.is_binary_view(source):
        return array.cast(pa.large_binary())
    if _is_list(source) and pt.is_string_view(source.value_type):
        return array.cast(pa.large_list(pa.large_string()))
    if _is_list(source) and pt.is_binary_view(source.value_type):
        return array.cast(pa.large_list(pa.large_binary()))
    return array


def _quick(array: pa.Array, kind: ValueType) -> pa.Array | None:
    """What needs no look at single values; None for anything else."""
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
        # A null becomes NumPy's "not a time", which is what Feast stores for one.
        return pa.array(array.to_numpy(zero_copy_only=False).astype("datetime64[s]").astype(np.int64))
    if _is_list(source) and not array.flatten().null_count:
        return _quick_list(array, kind)
    return None


def _quick_list(array: pa.Array, kind: ValueType) -> pa.Array | None:
    item, wanted = array.type.value_type, _NUMBER_LISTS.get(kind)
    if wanted is not None and pt.is_floating(wanted):
        is_quick = pt.is_floating(item)
    elif wanted is not None:
        is_quick = pt.is_integer(item)
    else:
        is_quick = (kind is ValueType.STRING_LIST and _is_text(item)) or (
            kind is ValueType.BOOL_LIST and pt.is_boolean(item)
        )
    return array if is_quick else None


def _nan_as_null(array: pa.Array) -> pa.Array:
    """Feast takes a scalar that is not a number for a null."""
    nans = pc.is_nan(array)
    return pc.if_else(nans, pa.scalar(None, array.type), array) if pc.any(nans).as_py() else array


def _times(column: Any, *, nulls_first: bool = False) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Nanoseconds since the epoch of a column of times in any form that pandas knows; naive ones are UTC.

    :raises InvalidRowError: for a null, unless they are to come before all times, or a time that 64 bits do not hold.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column.null_count and not nulls_first:
        raise InvalidRowError(f"row {column.is_null().index(True).as_py()}: expected an event time, got null")
    if not pt.is_timestamp(column.type):
        import pandas as pd

        parsed = pd.to_datetime(column.to_numpy(zero_copy_only=False), utc=True)
        if parsed.hasnans and not nulls_first:
            raise InvalidRowError(f"row {int(parsed.isna().argmax())}: expected an event time, got none")
        column = pa.array(parsed)
    try:
        nanoseconds = column.cast(pa.timestamp("ns", column.type.tz)).view(pa.int64())
    except pa.ArrowInvalid as error:
        raise InvalidRowError(f"expected event times between 1677 and 2262: {error}") from None
    filled = nanoseconds.fill_null(_BEFORE_ALL_TIMES) if nanoseconds.null_count else nanoseconds
    return np.asarray(filled.to_numpy(zero_copy_only=False), np.int64)


def _is_text(source: pa.DataType) -> bool:
    return bool(pt.is_string(source) or pt.is_large_string(source))


def _is_list(source: pa.DataType) -> bool:
    return bool(pt.is_list(source) or pt.is_large_list(source) or pt.is_fixed_size_list(source))


def map_columns(table: pa.Table, mapping: Mapping[str, str] | None) -> pa.Table:
    """The table with the names that a source's field mapping gives its columns."""
    return utils._run_pyarrow_field_mapping(table, dict(mapping)) if mapping else table
