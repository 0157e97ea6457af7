"""The way in for what callers pass: tables, columns and entity ids of any library, as Arrow.

Everything that writes takes its tables here, and everything that takes entity ids, to write or to read, takes them
here. A missing value is a null in whatever way a library marks it: Arrow's validity, NumPy's mask, ``None``, pandas'
``NA``, ``NaT`` and, where it is no float, NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from quorin.engine.rows.value import check_each, check_entity_id, shown
from quorin.errors import EntityIdError, InvalidRowError

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Int64s

_ID_TYPES = frozenset({pa.string(), pa.large_string(), pa.binary(), pa.large_binary()})
_MAX_DIGITS = len(str(-(2**63)))
_NUMBERS = {float, int}
_BYTES_OR_BOOL = (bytes, bytearray, memoryview, bool, np.bool_)
_CODES: dict[str, np.dtype[Any]] = {"U": np.dtype(np.uint32), "S": np.dtype(np.uint8)}
_TEXT_TYPES = {"U": pa.string(), "S": pa.binary()}
_MAX_ASCII = 0x7F
_MIN_COPIED_ROWS = 100  # One by one is quicker with fewer.
_MAX_COPIED_BYTES = 2**31 - 1  # The offsets of these types have 32 bits.


class NoArrowTypeError(Exception):
    """Arrow has no type for a column of Python objects: they are to be looked at one by one."""

    def __init__(self, values: Iterable[Any]) -> None:
        super().__init__()
        self.values = values


def table_columns(table: Any) -> dict[str, Any]:
    """The columns of a table by name, each as :func:`arrow_column` takes it.

    ``table`` is an Arrow table or record batch, a DataFrame of pandas or Polars, anything else that exports Arrow
    (``__arrow_c_stream__``, as relations of DuckDB do, or ``__arrow_c_array__``), a dict of columns, a list of record
    batches, or a list of dicts, one a row.

    :raises InvalidRowError: for anything else, a name that occurs twice, or rows with different keys.
    """
    names, columns = _named_columns(table)
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRowError(f"column {name!r} is in the table twice")
    return dict(zip(names, columns, strict=True))


def arrow_column(column: Any, name: str, *, nan_is_null: bool = True) -> pa.Array:
    """A column as one Arrow array; arrays of Arrow are not copied.

    ``column`` is an Arrow array, a series of pandas or Polars, anything else that exports Arrow, a NumPy array of one
    or more dimensions (the first counts the rows), or an iterable of Python values. ``nan_is_null`` says whether NaN in
    a column of pandas counts as missing.

    :raises NoArrowTypeError: for Python objects that Arrow has no one type for.
    :raises InvalidRowError: for an exported type that Arrow does not know, or a column that does not fit one array.
    """
    if isinstance(column, pa.Array):
        return column
    if not isinstance(column, pa.ChunkedArray):
        column = _imported(column, name, nan_is_null=nan_is_null)
    return _one_chunk(column, name) if isinstance(column, pa.ChunkedArray) else column


def id_array(entity_ids: Any) -> pa.Array:
    """Entity ids as an Arrow array of string, large_string, binary or large_binary without nulls; arrays of those types
    as they are, without copying.

    ``entity_ids`` is a list of str, or of bytes in UTF-8, or a column of those in any other form that
    :func:`arrow_column` takes, dictionaries (categories, enums) included. An empty column of any type is no ids.

    :raises EntityIdError: naming the first id that is null or no text, with its row; for one id instead of many, and
        for an array that has not one dimension.
    """
    if type(entity_ids) is list:
        ids = _ids_of_values(entity_ids)
    else:
        ids = entity_ids if isinstance(entity_ids, pa.Array) else _ids_of_column(entity_ids)
    if ids.type not in _ID_TYPES:
        ids = _as_text(ids)
    if ids.null_count:
        raise EntityIdError(f"row {pc.index(pc.is_null(ids), True).as_py()}: expected an entity id, got null")
    return ids


def number_ids(numbers: Int64s) -> pa.Array:
    """The decimal texts of int64 numbers, shape ``(N,)`` and contiguous, as an Arrow array that reads take as ids."""
    from quorin.engine import kernels

    ends = np.empty(len(numbers) + 1, np.int64)
    text = np.empty(_MAX_DIGITS * len(numbers), np.uint8)
    kernels.write_decimals(numbers, ends, text.ctypes.data)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_string(), len(numbers), buffers, 0)


def check_id_text(entity_id: object) -> None:
    """:raises EntityIdError: unless this is an entity id as str, or as bytes in UTF-8."""
    if isinstance(entity_id, bytes):
        try:
            entity_id = entity_id.decode()
        except UnicodeDecodeError as error:
            raise EntityIdError(f"entity id {shown(entity_id)} is not UTF-8: {error.reason}") from error
    check_entity_id(entity_id)


def dictionary_values(array: pa.DictionaryArray) -> pa.Array:
    """A dictionary array as the array of its values."""
    values = array.dictionary
    # Arrow cannot take from views.
    if pt.is_string_view(values.type):
        values = values.cast(pa.large_string())
    elif pt.is_binary_view(values.type):
        values = values.cast(pa.large_binary())
    return values.take(array.indices)


def _named_columns(table: Any) -> tuple[list[str], list[Any]]:
    if _is_of("pandas", "DataFrame", table):
        names = [str(name) for name in table.columns]
        return names, [table.iloc[:, index] for index in range(len(names))]
    if _is_of("polars", "DataFrame", table):
        return table.columns, table.get_columns()
    if isinstance(table, Mapping):
        return [str(name) for name in table], list(table.values())
    if isinstance(table, (list, tuple)):
        return _of_parts(table)
    if not isinstance(table, (pa.Table, pa.RecordBatch)):
        table = _exported_table(table)
    return table.schema.names, table.columns


def _of_parts(parts: Sequence[Any]) -> tuple[list[str], list[Any]]:
    """The columns of record batches or of rows, of one of either at least."""
    if parts and all(isinstance(part, pa.RecordBatch) for part in parts):
        try:
            whole = pa.Table.from_batches(parts)
        except pa.ArrowInvalid as error:
            raise InvalidRowError(f"the record batches are not of one table: {error}") from None
        return whole.schema.names, whole.columns
    for row, values in enumerate(parts):
        if not isinstance(values, Mapping):
            raise _no_table(parts, f"; row {row} is {shown(values)}")
        if values.keys() != parts[0].keys():
            raise InvalidRowError(f"row {row} has the keys {list(values)}, row 0 has {list(parts[0])}")
    names = list(parts[0]) if parts else []
    return [str(name) for name in names], [[row[name] for row in parts] for name in names]


def _exported_table(table: Any) -> pa.Table | pa.RecordBatch:
    try:
        if hasattr(table, "__arrow_c_stream__"):
            return pa.table(table)
        if hasattr(table, "__arrow_c_array__"):
            return pa.record_batch(table)
    except (pa.ArrowException, TypeError) as error:
        raise InvalidRowError(
            f"{type(table).__name__} exports no table that Arrow can read: {error}; expected columns by name, each of "
            f"an Arrow type"
        ) from error
    raise _no_table(table)


def _no_table(table: Any, detail: str = "") -> InvalidRowError:
    return InvalidRowError(
        "expected an Arrow table or record batch, a DataFrame, an object with __arrow_c_stream__, a dict of columns or "
        f"a list of dicts, got {shown(table)} of type {type(table).__name__}{detail}"
    )


def _imported(column: Any, name: str, *, nan_is_null: bool) -> pa.Array | pa.ChunkedArray:
    if isinstance(column, (str, bytes, Mapping)) or getattr(column, "ndim", 1) == 0:
        raise InvalidRowError(f"column {name!r}: expected one value a row, got {shown(column)}")
    if isinstance(column, np.ndarray):
        return _of_numpy(column)
    if type(column).__module__.partition(".")[0] == "pandas":
        return _of_pandas(column, nan_is_null=nan_is_null)
    if _is_of("polars", "Series", column) and column.dtype == sys.modules["polars"].Object:
        return _of_values(column.to_list())  # Polars exports the addresses of objects.
    try:
        if hasattr(column, "__arrow_c_stream__"):
            return pa.chunked_array(column)
        if hasattr(column, "__arrow_c_array__"):
            return pa.array(column)
    except (pa.ArrowException, TypeError) as error:
        kind = getattr(column, "dtype", type(column).__name__)
        raise InvalidRowError(f"column {name!r}: Arrow cannot read the type {kind}: {error}; cast it first") from error
    if not isinstance(column, Iterable):
        raise InvalidRowError(f"column {name!r}: expected one value a row, got {shown(column)}")
    return _of_values(column if isinstance(column, Sequence) else list(column))


def _of_numpy(array: AnyArray) -> pa.Array | pa.ChunkedArray:
    if array.dtype.kind == "O":
        return _of_values(array.tolist())
    try:
        if array.ndim == 1:
            return _of_texts(array) if array.dtype.kind in "SU" else pa.array(array, from_pandas=False)
        if np.ma.isMaskedArray(array) or not array.size:
            return _of_values(_masked_rows(array))
        nested = pa.array(array.reshape(-1), from_pandas=False)
        for size in reversed(array.shape[1:]):
            nested = pa.FixedSizeListArray.from_arrays(nested, size)
        return nested
    except pa.ArrowException:  # Of another byte order, or of a type that Arrow does not have.
        return _of_values(array.tolist())


def _of_texts(array: AnyArray) -> pa.Array | pa.ChunkedArray:
    """An array of str or bytes. Arrow itself would end each text at its first zero."""
    copied = _copied_texts(array) if len(array) >= _MIN_COPIED_ROWS else None
    if copied is not None:
        return copied
    texts = array.tolist()
    try:
        return pa.array(texts, _TEXT_TYPES[array.dtype.kind])
    except UnicodeEncodeError:
        raise NoArrowTypeError(texts) from None


def _copied_texts(array: AnyArray) -> pa.Array | None:
    """Bytes, or str of ASCII only, copied as a whole, several times as quick as one by one; None for other texts."""
    code = _CODES[array.dtype.kind]
    width = array.dtype.itemsize // code.itemsize
    if type(array) is not np.ndarray or not array.dtype.isnative or not 0 < array.size * width <= _MAX_COPIED_BYTES:
        return None
    codes = np.ascontiguousarray(array).view(code)
    if array.dtype.kind == "U" and codes.max() > _MAX_ASCII:
        return None
    ends = np.zeros(len(array) + 1, np.int32)
    np.cumsum(np.strings.str_len(array), out=ends[1:])
    text = codes.astype(np.uint8)
    text = text[text != 0]  # NumPy fills up each text with zeros.
    if len(text) != ends[-1]:  # A text has a zero of its own.
        return None
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(text)]
    return pa.Array.from_buffers(_TEXT_TYPES[array.dtype.kind], len(array), buffers, 0)


def _masked_rows(array: AnyArray) -> list[Any]:
    """The rows of an array; None where all of one is masked."""
    rows: list[Any] = array.tolist()
    if not array.size:
        return rows
    gone: Any = np.ma.getmaskarray(array).reshape(len(array), -1).all(axis=1)
    return [None if gone[row] else values for row, values in enumerate(rows)]


def _of_pandas(series: Any, *, nan_is_null: bool) -> pa.Array | pa.ChunkedArray:
    try:
        if not nan_is_null:
            # By pandas' rules Arrow would turn NaN into null, in columns of floats and even inside lists.
            return pa.array(series.to_numpy(), from_pandas=False)
        if series.dtype == object:
            return _of_values(series.tolist(), from_pandas=True)
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        raise NoArrowTypeError(_present(series)) from None


def _of_values(values: Sequence[Any], *, from_pandas: bool = False) -> pa.Array:
    """Python objects as the type that Arrow infers; it would take a bool beside floats for a number, and text beside
    bytes for bytes.
    """
    kinds = set(map(type, values)) - {type(None)}
    try:
        if len(kinds) > 1 and not kinds <= _NUMBERS and any(issubclass(kind, _BYTES_OR_BOOL) for kind in kinds):
            raise NoArrowTypeError(_present(values) if from_pandas else values)
        return pa.array(values, from_pandas=from_pandas)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError, TypeError):
        raise NoArrowTypeError(_present(values) if from_pandas else values) from None


def _present(values: Iterable[Any]) -> list[Any]:
    return [None if _is_missing(value) else value for value in values]


def _is_missing(value: Any) -> bool:
    """Whether pandas would call this scalar missing: ``None``, NaN, ``NaT`` or ``NA``."""
    if value is None or isinstance(value, float):
        return value is None or value != value
    pandas = sys.modules.get("pandas")
    return pandas is not None and (value is pandas.NA or value is pandas.NaT)


def _one_chunk(column: pa.ChunkedArray, name: str) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    if not column.num_chunks:
        return pa.array([], column.type)
    if pt.is_dictionary(column.type):
        # Chunks may have different dictionaries, which Arrow cannot unify for every type.
        column = pa.chunked_array([dictionary_values(chunk) for chunk in column.chunks])
    combined = column.combine_chunks()
    if not isinstance(combined, pa.ChunkedArray):
        return combined
    if combined.num_chunks > 1:
        raise InvalidRowError(f"column {name!r}: {column.nbytes} bytes do not fit one batch: pass the table in parts")
    return combined.chunk(0)


def _ids_of_values(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.string(), from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError, TypeError, OverflowError):
        check_each("entity_id", check_id_text, values)
        return pa.array(values, pa.large_string(), from_pandas=True)  # More than 2 GiB of text.


def _ids_of_column(entity_ids: Any) -> pa.Array:
    if isinstance(entity_ids, (str, bytes)):
        raise EntityIdError(f"expected many entity ids, got one: {entity_ids!r}")
    shape = getattr(entity_ids, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 1:
        raise EntityIdError(f"expected entity ids in one dimension, got an array of shape {shape}")
    try:
        return arrow_column(entity_ids, "entity_id")
    except NoArrowTypeError as error:
        return _ids_of_values([None if _is_missing(value) else value for value in error.values])
    except InvalidRowError as error:
        raise EntityIdError(str(error)) from error


def _as_text(ids: pa.Array) -> pa.Array:
    if not len(ids):
        return pa.array([], pa.string())
    if pt.is_dictionary(ids.type):
        return _as_text(dictionary_values(ids))
    if pt.is_null(ids.type) or ids.type in _ID_TYPES:
        return ids
    if pt.is_string_view(ids.type):
        return ids.cast(pa.large_string())
    if pt.is_binary_view(ids.type):
        return ids.cast(pa.large_binary())
    first = pc.index(ids.is_valid(), True).as_py()
    row = f"row {first}: {shown(ids[first].as_py())} in " if first >= 0 else ""
    raise EntityIdError(f"entity ids must be text, got {row}an Arrow array of {ids.type}")


def _is_of(module: str, name: str, value: Any) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))
