"""Which values a field takes, one at a time: nothing wraps, truncates or becomes infinite, and a bool is no number.

This is the definition. :mod:`quorin.engine.rows.column` decides the same for whole columns and falls back on it to
name the first value that does not fit.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.errors import EntityIdError, EntityIdTooLongError, InvalidRowError
from quorin.schema import FeatureField, dtype

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray

FLOAT32_OVERFLOW = math.ldexp(2 - 2.0**-24, 127)
"""The smallest magnitude that rounds to infinity in float32."""

_INTEGER_RANGES = {
    code: (int(np.iinfo(code.numpy).min), int(np.iinfo(code.numpy).max))
    for code in (dtype.int32, dtype.int64, dtype.uint8)
}
_TEXT_LIKE = (str, bytes, bytearray, memoryview)


def check_value(field: FeatureField, value: Any) -> Any:
    """One value as a field keeps it, or ``None`` for a null.

    Scalars come back as Python's int, float, bool, str or bytes; fixed shapes and lists of numbers as a NumPy array of
    exactly the field's dtype and shape; lists of strings or bytes as a Python list.

    :raises InvalidRowError: if the field cannot hold the value unchanged (numbers in float fields may round); the text
        names field, value and what was expected.
    """
    if value is None:
        return None
    if field.shape == ():
        return _SCALAR_CHECKS[field.dtype](field, value)
    if isinstance(value, _TEXT_LIKE) or not isinstance(value, (Sequence, np.ndarray)):
        raise _misfit(field, value, _shape_text(field))
    if field.dtype.is_numeric:
        return _checked_array(field, value)
    return [_checked_element(field, value, element) for element in value]


def check_entity_id(entity_id: object, max_id_bytes: int | None = None) -> bytes:
    """The UTF-8 bytes of an entity id.

    :raises EntityIdError: if it is no ``str``, empty, or holds lone surrogates.
    :raises EntityIdTooLongError: if it has more bytes than the limit.
    """
    if not isinstance(entity_id, str):
        raise EntityIdError(f"an entity id must be a str, got {shown(entity_id)} of type {type(entity_id).__name__}")
    if not entity_id:
        raise EntityIdError("an entity id must not be empty, got ''")
    try:
        encoded = entity_id.encode()
    except UnicodeEncodeError as error:
        raise EntityIdError(f"entity id {shown(entity_id)} cannot be encoded as UTF-8: {error.reason}") from error
    if max_id_bytes is not None and len(encoded) > max_id_bytes:
        raise EntityIdTooLongError(
            f"entity id {shown(entity_id)} has {len(encoded)} bytes in UTF-8, at most {max_id_bytes} fit"
        )
    return encoded


def check_event_time(event_time_ns: Any) -> int:
    """Whole nanoseconds since the epoch, UTC, in 64 bits.

    :raises InvalidRowError: for anything else.
    """
    if not isinstance(event_time_ns, (bool, np.bool_)):
        try:
            number = operator.index(event_time_ns)
        except TypeError:
            number = None
        if number is not None and -(2**63) <= number < 2**63:
            return number
    raise InvalidRowError(
        f"event_time_ns must be whole nanoseconds since the epoch in 64 bits, got {shown(event_time_ns)}"
    )


def event_time_or_now(event_time_ns: Any) -> int:
    """The checked event time, or the present one for ``None``."""
    return time.time_ns() if event_time_ns is None else check_event_time(event_time_ns)


def check_each(name: str, check: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    """Every value of a column through a check; the first error comes back with its row and the column's name."""
    checked = []
    for row, value in enumerate(values):
        try:
            checked.append(check(value))
        except (InvalidRowError, EntityIdError) as error:
            raise type(error)(f"row {row}, column {name!r}: {error}") from None
    return checked


def shown(value: object) -> str:
    """A value for an error's text, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def _checked_float(field: FeatureField, value: Any) -> float:
    if type(value) is not float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise _misfit(field, value, "a number")
        try:
            value = float(value)
        except OverflowError as error:
            raise _misfit(field, value, f"a number in the range of {field.dtype.name}") from error
    if field.dtype is dtype.float32 and abs(value) >= FLOAT32_OVERFLOW and not math.isinf(value):
        raise _misfit(field, value, "a number in the range of float32")
    return float(value)


def _checked_integer(field: FeatureField, value: Any) -> int:
    if type(value) is not int:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise _misfit(field, value, "a whole number")
        if isinstance(value, (float, np.floating)) and not float(value).is_integer():
            raise _misfit(field, value, "a whole number")
    low, high = _INTEGER_RANGES[field.dtype]
    number = int(value)
    if not low <= number <= high:
        raise _misfit(field, value, f"a whole number from {low} to {high}")
    return number


def _checked_bool(field: FeatureField, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise _misfit(field, value, "True or False")
    return bool(value)


def _checked_string(field: FeatureField, value: Any) -> str:
    if not isinstance(value, str):
        raise _misfit(field, value, "a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _misfit(field, value, "a str that UTF-8 can encode (no lone surrogates)") from error
    return str(value)


def _checked_bytes(field: FeatureField, value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise _misfit(field, value, "bytes")
    return bytes(value)


_SCALAR_CHECKS: dict[dtype, Callable[[FeatureField, Any], Any]] = {
    dtype.float32: _checked_float,
    dtype.float64: _checked_float,
    dtype.int32: _checked_integer,
    dtype.int64: _checked_integer,
    dtype.uint8: _checked_integer,
    dtype.bool: _checked_bool,
    dtype.string: _checked_string,
    dtype.bytes: _checked_bytes,
}


def _checked_element(field: FeatureField, value: Any, element: Any) -> Any:
    if element is None:
        raise _misfit(field, value, f"{_shape_text(field)} without nulls")
    return _SCALAR_CHECKS[field.dtype](field, element)


def _checked_array(field: FeatureField, value: Sequence[Any] | AnyArray) -> AnyArray:
    """Numbers as an array. Arrays whose dtype casts without loss skip the check of each element."""
    target = field.dtype.numpy
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        array = value
        lossless = value.dtype == target or (
            field.dtype is not dtype.bool and value.dtype.kind in "iuf" and np.can_cast(value.dtype, target, "safe")
        )
    else:
        array = _object_array(field, value)
        lossless = False
    if not (array.ndim == 1 if field.is_list else array.shape == field.shape):
        raise _misfit(field, value, f"{_shape_text(field)} (got shape {array.shape})")
    if not lossless:
        elements = [_checked_element(field, value, element) for element in array.ravel().tolist()]
        array = np.array(elements, target).reshape(array.shape)
    return np.ascontiguousarray(array, target)


def _object_array(field: FeatureField, value: Sequence[Any] | AnyArray) -> AnyArray:
    if field.is_list:
        array = np.empty(len(value), object)
        array[:] = list(value)
        return array
    try:
        return np.array([part.tolist() if isinstance(part, np.ndarray) else part for part in value], object)
    except ValueError as error:
        raise _misfit(field, value, _shape_text(field)) from error


def _shape_text(field: FeatureField) -> str:
    return (
        f"a flat list of {field.dtype.name}" if field.is_list else f"{field.dtype.name} values of shape {field.shape}"
    )


def _misfit(field: FeatureField, value: object, expected: str) -> InvalidRowError:
    return InvalidRowError(f"field {field.name!r} ({field.dtype.name}): expected {expected}, got {shown(value)}")
