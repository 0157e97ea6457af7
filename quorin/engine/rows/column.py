"""Whole Arrow columns cast to the types of fields, with Arrow's kernels: no Python for each row unless one is wrong.

Every function returns what :func:`quorin.engine.rows.value.check_value` returns for each value in turn. If Arrow's
kernels refuse a column, that function checks its values one by one: it names the first that does not fit, or, if all
fit, they become the column.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from quorin.engine.rows.intake import check_id_text, dictionary_values, id_array
from quorin.engine.rows.value import check_each, check_event_time, check_value, shown
from quorin.errors import EntityIdError, EntityIdTooLongError, InvalidRowError
from quorin.schema import FeatureField, make_schema, schema_to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from quorin.engine.arrays import AnyArray, Int32s

_SLICE_ROWS = 1 << 16
_UNIT_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


class _NotCastableError(Exception):
    """Arrow's kernels cannot turn a column into the target type without loss."""


@lru_cache(maxsize=1024)
def arrow_type_of(field: FeatureField) -> pa.DataType:
    """The Arrow type of a field's column."""
    return schema_to_arrow(make_schema("Column", [field])).field(0).type


def cast_field(array: pa.Array, field: FeatureField) -> pa.Array:
    """A column as a field's Arrow type; the same array if it has that type already.

    :raises InvalidRowError: naming the field, the first value that does not fit, and its row.
    """
    try:
        return _cast(array, arrow_type_of(field))
    except (_NotCastableError, pa.ArrowException):
        try:
            return checked_column(field, _values_of(field.name, array))
        except InvalidRowError as error:
            raise InvalidRowError(f"{error}, in a column of the Arrow type {array.type}") from None


def cast_entity_ids(column: Any, max_id_bytes: int | None) -> pa.Array:
    """Entity ids, as :func:`quorin.engine.rows.intake.id_array` takes them, as ``string`` without nulls or empty ids.

    :raises EntityIdError: for the first id that is null, empty or no text, with its row.
    :raises EntityIdTooLongError: for the first id over the limit, with its row.
    """
    ids = id_array(column)
    try:
        ids = ids.cast(pa.string())
    except pa.ArrowException as error:
        check_each("entity_id", check_id_text, _values_of("entity_id", ids))
        raise EntityIdError(f"column 'entity_id': {ids.nbytes} bytes do not fit one batch: {error}") from None
    lengths = pc.binary_length(ids)
    shortest_longest = pc.min_max(lengths)
    if shortest_longest["min"].as_py() == 0:
        raise EntityIdError(f"row {_first(pc.equal(lengths, 0))}: an entity id must not be empty, got ''")
    if max_id_bytes is not None and (shortest_longest["max"].as_py() or 0) > max_id_bytes:
        row = _first(pc.greater(lengths, max_id_bytes))
        raise EntityIdTooLongError(
            f"row {row}: entity id {shown(ids[row].as_py())} has {lengths[row].as_py()} bytes in UTF-8, "
            f"at most {max_id_bytes} fit"
        )
    return ids


def cast_event_times(array: pa.Array, name: str = "event_time_ns") -> pa.Array:
    """A column of event times as ``int64`` nanoseconds since the epoch; naive timestamps are taken as UTC, and dates as
    their midnight in UTC.

    :raises InvalidRowError: for the first value that is null, no time, or outside 64 bits of nanoseconds.
    """
    source = array.type
    try:
        if pt.is_date(array.type):
            array = array.cast(pa.timestamp("s"))
        if pt.is_timestamp(array.type):
            array = array.cast(pa.timestamp("ns", array.type.tz)).view(pa.int64())
        elif not pt.is_integer(array.type) and not pt.is_null(array.type):
            raise _NotCastableError
        times = array.cast(pa.int64())
    except (_NotCastableError, pa.ArrowException) as error:
        if pt.is_timestamp(array.type):
            row = _first_outside(array)
            number = array.view(pa.int64())[row]
            raise InvalidRowError(
                f"row {row}, column {name!r}: expected a time from 1677-09-21 00:12:43.145225 to 2262-04-11 "
                f"23:47:16.854775 UTC, got {number} {array.type.unit} since the epoch"
            ) from error
        check_each(name, check_event_time, _values_of(name, array))
        raise InvalidRowError(
            f"column {name!r}: expected integer nanoseconds or timestamps from 1678 to 2261, got {source}"
        ) from error
    if times.null_count:
        raise InvalidRowError(f"row {_first(pc.is_null(times))}: column {name!r}: expected a time, got null")
    return times


def _first_outside(timestamps: pa.Array) -> int:
    """The first row whose time 64 bits of nanoseconds do not hold."""
    most = (2**63 - 1) // _UNIT_NS[timestamps.type.unit]
    times = timestamps.view(pa.int64())
    return _first(pc.or_(pc.less(times, -most), pc.greater(times, most)))


def numbers(array: pa.Array, kind: type[np.number[Any]]) -> AnyArray:
    """The values of an array of numbers of this type without nulls, as a view; ``Array.to_numpy`` would load pandas,
    which takes a third of a second.
    """
    if not len(array):
        return np.zeros(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * np.dtype(kind).itemsize)


def number_array(values: Sequence[int] | AnyArray, kind: pa.DataType) -> pa.Array:
    """Numbers without nulls as an array, a view of ``values`` if they are in NumPy; ``pa.array`` would load pandas."""
    items = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(items), [None, pa.py_buffer(items)])


def text_lengths(array: pa.Array) -> Int32s:
    """The lengths in bytes of a string array's values, int32 of shape ``(rows,)``; a null's is meaningless."""
    if not len(array):
        return np.zeros(0, np.int32)
    ends = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, 4 * array.offset)
    return ends[1:] - ends[:-1]


def checked_column(field: FeatureField, values: Iterable[Any]) -> pa.Array:
    """A column from Python values, each checked by itself: the slow way, for what Arrow cannot decide."""
    checked = check_each(field.name, lambda value: check_value(field, value), values)
    if len(field.shape) > 1:
        checked = [None if value is None else value.tolist() for value in checked]
    return pa.array(checked, arrow_type_of(field))


def _values_of(name: str, array: pa.Array) -> Iterator[Any]:
    for start in range(0, len(array), _SLICE_ROWS):
        try:
            yield from array.slice(start, _SLICE_ROWS).to_pylist()
        except (ValueError, OverflowError) as error:
            raise InvalidRowError(f"column {name!r}: a value of type {array.type} is out of range: {error}") from error


def _first(mask: pa.Array) -> int:
    return int(pc.index(mask, True).as_py())


def _cast(array: pa.Array, target: pa.DataType) -> pa.Array:
    """``array`` as ``target`` without loss; nulls are allowed at the outermost level only."""
    source = array.type
    if pt.is_dictionary(source):
        array = dictionary_values(array)
        source = array.type
    if pt.is_null(source):
        return pa.nulls(len(array), target)
    if pt.is_list(target):
        return _cast_lists(array, target)
    if pt.is_fixed_size_list(target):
        return _cast_fixed_lists(array, target)
    if source == target:
        return array
    if pt.is_floating(target):
        return _cast_to_float(array, target)
    if pt.is_integer(target) and (pt.is_integer(source) or pt.is_floating(source)):
        return array.cast(target)
    if (pt.is_string(target) and _is_text(source)) or (pt.is_binary(target) and _is_bytes(source)):
        return array.cast(target)
    raise _NotCastableError


def _cast_to_float(array: pa.Array, target: pa.DataType) -> pa.Array:
    if pt.is_integer(array.type):
        return array.cast(options=pc.CastOptions(target, allow_float_truncate=True))
    if not pt.is_floating(array.type):
        raise _NotCastableError
    cast = array.cast(target)
    if target == pa.float32() and array.type == pa.float64():
        overflown = pc.and_(pc.is_inf(cast), pc.is_finite(array))
        if pc.any(overflown).as_py():
            raise _NotCastableError
    return cast


def _cast_lists(array: pa.Array, target: pa.DataType) -> pa.Array:
    flat = _flat_elements(array)
    elements = _cast(flat, target.value_type)
    if elements is flat and array.type.equals(target):
        return array
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise InvalidRowError(
            f"a column of {offsets[-1]} list elements does not fit one batch: pass the table in parts"
        )
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), elements, type=target, mask=_null_mask(array))


def _cast_fixed_lists(array: pa.Array, target: pa.DataType) -> pa.Array:
    flat = _flat_elements(array)
    size = target.list_size
    if array.null_count < len(array):
        lengths = pc.min_max(pc.list_value_length(array))
        if lengths["min"].as_py() != size or lengths["max"].as_py() != size:
            raise _NotCastableError
    elements = _cast(flat, target.value_type)
    if elements is flat and array.type.equals(target):
        return array
    mask = _null_mask(array)
    if mask is not None:
        valid = np.flatnonzero(~mask.to_numpy(zero_copy_only=False))
        indices = np.zeros((len(array), size), np.int64)
        indices[valid] = np.arange(len(valid) * size).reshape(-1, size)
        taken = pa.array(indices.ravel()) if len(valid) else pa.nulls(len(array) * size, pa.int64())
        elements = elements.take(taken)
    return pa.FixedSizeListArray.from_arrays(elements, type=target, mask=mask)


def _flat_elements(array: pa.Array) -> pa.Array:
    source = array.type
    if not (pt.is_list(source) or pt.is_large_list(source) or pt.is_fixed_size_list(source)):
        raise _NotCastableError
    flat = array.flatten()
    if flat.null_count:
        raise _NotCastableError
    return flat


def _null_mask(array: pa.Array) -> pa.Array | None:
    return pc.is_null(array) if array.null_count else None


def _is_text(source: pa.DataType) -> bool:
    return bool(pt.is_string(source) or pt.is_large_string(source) or pt.is_string_view(source))


def _is_bytes(source: pa.DataType) -> bool:
    return bool(
        pt.is_binary(source)
        or pt.is_large_binary(source)
        or pt.is_binary_view(source)
        or pt.is_fixed_size_binary(source)
    )
