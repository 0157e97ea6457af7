"""A frame of one row, as it is pushed, straight to what the log takes, without an Arrow table in between.

To one row the table costs more than all the rest. What comes out is what :mod:`feast_quorin.write.tables` makes of it;
a row with anything but plain numbers, booleans and texts is left to that.
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
"""Integers that every float holds exactly, however they get there."""
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_MOST_KEY_CHARACTERS = 500


class _NotPlainError(Exception):
    """Something in the row is for :mod:`feast_quorin.write.tables`, to take or to refuse."""


def plain_row(
    view: StoredView, table: Any, frame: pd.DataFrame, mapping: Mapping[str, str] | None
) -> tuple[str, dict[str, Any], int] | None:
    """Entity id, values by field and event time of the one row of a frame, as ``log.write_row`` takes them.

    ``table`` is Feast's view, ``mapping`` its source's names for columns. None for a frame that is not one plain row.
    """
    source = getattr(table, "batch_source", None)
    if len(frame) != 1 or source is None or view.schema.tie_breaker is not None or not frame.columns.is_unique:
        return None
    if frame.index.names != [None]:  # A level with a name is a column.
        return None
    names = frame.columns.tolist()
    if mapping and not mapping.keys().isdisjoint(names):
        return None
    row = dict(zip(names, next(frame.itertuples(index=False, name=None)), strict=True))
    time = row.get(source.timestamp_field)
    if not is_time(time) or not table.entity_columns:
        return None
    try:
        keys = {column.name: _key(row[column.name], column.dtype.to_value_type()) for column in table.entity_columns}
        values = {stored.field: _value(row[name], stored.codec.kind) for name, stored in view.features.items()}
        return SEPARATOR.join([keys[name] for name in sorted(keys)]), values, to_ns(time)
    except (_NotPlainError, KeyError, UnicodeEncodeError, InvalidRowError):
        return None


def _key(value: Any, kind: ValueType) -> str:
    if type(value) is int and value in _INTEGER_KEYS.get(kind, ()):
        return str(value)
    if kind is ValueType.STRING and type(value) is str and len(value) <= _MOST_KEY_CHARACTERS:
        value.encode()
        return escaped(value)
    raise _NotPlainError


def _value(value: Any, kind: str) -> Any:
    if kind in ("float_val", "double_val"):
        return _number(value, kind)
    if type(value) is not _EXACT_TYPES.get(kind):
        raise _NotPlainError
    if kind in _RANGES and value not in _RANGES[kind]:
        raise _NotPlainError
    if kind == "string_val":
        str(value).encode()
    return value


def _number(value: Any, kind: str) -> float | None:
    """A float as its field holds it; one that is not a number is a null, as Feast has it."""
    if type(value) is int and value in _EXACT_INTEGERS:
        return float(value)
    if type(value) is not float:
        raise _NotPlainError
    if math.isnan(value):
        return None
    if kind == "double_val":
        return value
    if abs(value) > _LARGEST_FLOAT32 and not math.isinf(value):
        raise _NotPlainError
    return float(np.float32(value))
