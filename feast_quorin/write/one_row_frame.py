"""Frames of one row, as in a push, converted for the log without an Arrow table.

For one row, the table would cost more than everything else. The result equals that of :mod:`feast_quorin.write.tables`,
which converts all rows with values other than numbers, booleans and strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from feast.value_type import ValueType

from feast_quorin.convert.entity_ids import SEPARATOR, escaped
from feast_quorin.convert.times import is_time, to_ns
from quorin.errors import InvalidRowError

if TYPE_CHECKING:
    import pandas as pd

    from feast_quorin.views import StoredView

_EXACT_TYPES = {"int32_val": int, "int64_val": int, "bool_val": bool, "string_val": str}
_RANGES = {"int32_val": range(-(2**31), 2**31), "int64_val": range(-(2**63), 2**63)}
_INTEGER_KEYS = {ValueType.INT32: _RANGES["int32_val"], ValueType.INT64: _RANGES["int64_val"]}
_EXACT_INTEGERS = range(-(2**24), 2**24 + 1)
"""Integers that float32 and float64 represent exactly."""
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_MAX_KEY_CHARACTERS = 500


class _UnsupportedError(Exception):
    """The row has a value that only :mod:`feast_quorin.write.tables` can convert or refuse."""


def plain_row(
    view: StoredView, table: Any, frame: pd.DataFrame, mapping: Mapping[str, str] | None
) -> tuple[str, dict[str, Any], int] | None:
    """Entity id, values by field and event time of a frame's only row, for :func:`feast_quorin.write.log.write_row`.

    ``table`` is Feast's view, ``mapping`` its source's field mapping. None for a frame with more rows or other values.
    """
    source = getattr(table, "batch_source", None)
    if len(frame) != 1 or source is None or view.schema.tie_breaker is not None or not frame.columns.is_unique:
        return None
    if frame.index.names != [None]:  # A named level would be a column.
        return None
    names = frame.columns.tolist()
    if mapping and not mapping.keys().isdisjoint(names):
        return None
    # A column at a time: pandas' own rows take seven times as long.
    row = {name: column.tolist()[0] for name, column in frame.items()}
    time = row.get(source.timestamp_field)
    if not is_time(time) or not table.entity_columns:
        return None
    try:
        keys = {column.name: _key(row[column.name], column.dtype.to_value_type()) for column in table.entity_columns}
        values = {stored.field: _value(row[name], stored.codec.kind) for name, stored in view.features.items()}
        return SEPARATOR.join([keys[name] for name in sorted(keys)]), values, to_ns(time)
    except (_UnsupportedError, KeyError, UnicodeEncodeError, InvalidRowError):
        return None


def _key(value: Any, kind: ValueType) -> str:
    if type(value) is int and value in _INTEGER_KEYS.get(kind, ()):
        return str(value)
    if kind is ValueType.STRING and type(value) is str and len(value) <= _MAX_KEY_CHARACTERS:
        value.encode()
        return escaped(value)
    raise _UnsupportedError


def _value(value: Any, kind: str) -> Any:
    if kind in ("float_val", "double_val"):
        return _number(value, kind)
    if type(value) is not _EXACT_TYPES.get(kind):
        raise _UnsupportedError
    if kind in _RANGES and value not in _RANGES[kind]:
        raise _UnsupportedError
    if kind == "string_val":
        str(value).encode()
    return value


def _number(value: Any, kind: str) -> float | None:
    """A float as its field stores it. NaN becomes null, as in Feast."""
    if type(value) is int and value in _EXACT_INTEGERS:
        return float(value)
    if type(value) is not float:
        raise _UnsupportedError
    if math.isnan(value):
        return None
    if kind == "double_val":
        return value
    if abs(value) > _MAX_FLOAT32 and not math.isinf(value):
        raise _UnsupportedError
    return float(np.float32(value))
