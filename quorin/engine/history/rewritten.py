"""Files of a history that another tool wrote anew: their columns as the types that a history has.

pandas, Polars, DuckDB and fastparquet keep the values and change types: large strings, bytes in place of text, lists in
place of fixed-size lists, floats in place of integers beside nulls, no type where all values are null. Whatever casts
without loss is read as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from quorin.engine.history.parquet import SYSTEM_SCHEMA, column_name
from quorin.engine.rows.column import arrow_type_of, cast_field
from quorin.errors import CorruptHistoryError, InvalidRowError

if TYPE_CHECKING:
    from quorin.schema import Schema

_EXACT_FLOAT = 2**53


def restored_schema(path: str, arrow_schema: pa.Schema) -> pa.Schema:
    """The types that a file's columns are read as; the same schema for a file that Quorin wrote.

    :raises CorruptHistoryError: naming the file and the column, if a column of the history has a type that does not
        cast to the history's own without loss.
    """
    fields = []
    for field in arrow_schema:
        if field.name not in SYSTEM_SCHEMA.names:
            fields.append(field.with_type(_usual(field.type)))
            continue
        own = SYSTEM_SCHEMA.field(field.name)
        if not _is_castable(_usual(field.type), own):
            raise CorruptHistoryError(f"{path}: column {field.name!r} has the type {field.type}, expected {own.type}")
        fields.append(own)
    return pa.schema(fields, arrow_schema.metadata)


def restored(path: str, rows: pa.RecordBatch, arrow_schema: pa.Schema) -> pa.RecordBatch:
    """Rows of a file with the types of :func:`restored_schema`.

    :raises CorruptHistoryError: naming the file and the column, for a value that does not cast, or a null where none
        may be.
    """
    fields = [arrow_schema.field(name) for name in rows.schema.names]
    columns = []
    for field, column in zip(fields, rows.columns, strict=True):
        try:
            column = column if column.type.equals(field.type) else column.cast(field.type)
        except pa.ArrowException as error:
            raise CorruptHistoryError(f"{path}: column {field.name!r}: {error}") from error
        if column.null_count and not field.nullable:
            raise CorruptHistoryError(f"{path}: column {field.name!r}: expected no nulls, got {column.null_count}")
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def with_fields(schema: Schema, path: str, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Restored rows with the fields' own types, where another tool changed them without loss.

    Other types stay, and are compared with the schema's as those of any file.

    :raises CorruptHistoryError: naming the file and the column, for a value that does not cast.
    """
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    for field in schema.fields:
        name, target = column_name(field.name), arrow_type_of(field)
        column = columns.get(name)
        if column is None or column.type.equals(target) or not _is_changed(column.type, target):
            continue
        try:
            if pt.is_floating(column.type):
                _check_exact(column)
            text = _with_leaf(column.type, _leaf(target)) if _is_text(_leaf(column.type)) else column.type
            columns[name] = cast_field(column.cast(text), field)
        except (pa.ArrowException, InvalidRowError) as error:
            raise CorruptHistoryError(f"{path}: column {name!r}: {error}") from error
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def _is_castable(source: pa.DataType, own: pa.Field) -> bool:
    if pt.is_null(source):
        return bool(own.nullable)
    if pt.is_string(own.type):
        return _is_text(source)
    return bool(pt.is_timestamp(source) if pt.is_timestamp(own.type) else pt.is_integer(source))


def _is_changed(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether a tool may have turned ``target`` into ``source``: another kind of list, bytes, floats beside nulls."""
    if pt.is_null(source):
        return True
    if _is_list(source) and _is_list(target):
        return bool(source.value_type.equals(target.value_type) or _is_changed(source.value_type, target.value_type))
    if _is_text(source) and _is_text(target):
        return True
    return bool(pt.is_integer(target) and pt.is_float64(source))


def _check_exact(floats: pa.Array) -> None:
    largest = pc.max(pc.abs(floats)).as_py()
    if largest is not None and largest > _EXACT_FLOAT:
        raise InvalidRowError(f"expected integers, got floats that may be rounded: up to {largest!r}")


def _usual(kind: pa.DataType) -> pa.DataType:
    """The type of the same values without the flavours that Arrow has of it: large, view, dictionary."""
    if pt.is_dictionary(kind):
        return _usual(kind.value_type)
    if pt.is_large_string(kind) or pt.is_string_view(kind):
        return pa.string()
    if pt.is_large_binary(kind) or pt.is_binary_view(kind):
        return pa.binary()
    if pt.is_large_list(kind) or (_is_list(kind) and not _usual(kind.value_type).equals(kind.value_type)):
        return _list_of(_usual(kind.value_type), kind)
    return kind


def _with_leaf(kind: pa.DataType, leaf: pa.DataType) -> pa.DataType:
    return _list_of(_with_leaf(kind.value_type, leaf), kind) if _is_list(kind) else leaf


def _list_of(element: pa.DataType, like: pa.DataType) -> pa.DataType:
    return pa.list_(element, like.list_size) if pt.is_fixed_size_list(like) else pa.list_(element)


def _leaf(kind: pa.DataType) -> pa.DataType:
    return _leaf(kind.value_type) if _is_list(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.binary())
