"""Rows on their way in: one row or whole tables, checked against a schema, as its canonical Arrow record batch.

A canonical batch has the columns ``entity_id: string`` and ``event_time_ns: int64`` (nanoseconds since the epoch, UTC),
neither with nulls, and then the fields in declaration order, typed as :func:`quorin.schema.schema_to_arrow` says.
A partial batch has only some of the fields, a delete batch none.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.engine.caches import per_schema
from quorin.engine.rows.column import cast_entity_ids, cast_event_times, cast_field, checked_column
from quorin.engine.rows.intake import NoArrowTypeError, arrow_column, table_columns
from quorin.engine.rows.value import check_each, check_entity_id, check_event_time, check_value, event_time_or_now
from quorin.errors import InvalidRowError
from quorin.schema import FeatureField, Schema, dtype, schema_to_arrow

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = [
    "DELETE_SCHEMA",
    "ENTITY_ID",
    "EVENT_TIME",
    "canonical_schema",
    "check_entity_id",
    "check_value",
    "checked_row",
    "delete_batch",
    "fields_by_name",
    "row_batch",
    "rows_batch",
    "subset_schema",
    "to_batch",
]

ENTITY_ID = "entity_id"
EVENT_TIME = "event_time_ns"
_FLOATS = ("float32", "float64")

DELETE_SCHEMA = pa.schema([pa.field(ENTITY_ID, pa.string(), False), pa.field(EVENT_TIME, pa.int64(), False)])
"""The Arrow schema of a batch that deletes."""


@per_schema
def canonical_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a schema's canonical batches."""
    return pa.schema([*DELETE_SCHEMA, *schema_to_arrow(schema)])


@per_schema
def fields_by_name(schema: Schema) -> Mapping[str, FeatureField]:
    """The fields of a schema by name, in declaration order."""
    return MappingProxyType({field.name: field for field in schema.fields})


def subset_schema(schema: Schema, names: Iterable[str]) -> pa.Schema:
    """The Arrow schema of a partial batch with these fields, in this order."""
    canonical = canonical_schema(schema)
    return pa.schema([*DELETE_SCHEMA, *(canonical.field(name) for name in names)])


def row_batch(
    schema: Schema,
    entity_id: str,
    values: Mapping[str, Any],
    event_time_ns: int | None = None,
    *,
    partial: bool = False,
) -> pa.RecordBatch:
    """One row as a canonical batch. Without an event time it is the present one; ``partial`` lets fields be left out.

    :raises InvalidRowError: for a missing, unknown or ill-fitting value; an explicit ``None`` is a null.
    :raises EntityIdError: for an id that is empty or no text.
    """
    fields = fields_by_name(schema)
    if values.keys() == fields.keys():
        return rows_batch(schema, [checked_row(schema, entity_id, values, event_time_ns)])
    _check_names(schema, values, partial=partial)
    fields = {name: field for name, field in fields.items() if name in values}
    row_type = pa.struct(list(subset_schema(schema, fields)))
    return _struct_batch([_checked_row(fields, entity_id, values, event_time_ns)], row_type)


def checked_row(
    schema: Schema, entity_id: str, values: Mapping[str, Any], event_time_ns: int | None = None
) -> tuple[Any, ...]:
    """One whole row for :func:`rows_batch`, checked as :func:`row_batch` does."""
    fields = fields_by_name(schema)
    if values.keys() != fields.keys():
        _check_names(schema, values, partial=False)
    return _checked_row(fields, entity_id, values, event_time_ns)


def rows_batch(schema: Schema, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    """Rows of :func:`checked_row` as one canonical batch."""
    return _struct_batch(rows, _row_type(schema))


def delete_batch(entity_ids: Sequence[str], event_time_ns: int | None = None) -> pa.RecordBatch:
    """Entities to forget as of an event time (``None``: the present one): a batch of ids and times only.

    :raises EntityIdError: for an id that is empty or no text.
    """
    for entity_id in entity_ids:
        check_entity_id(entity_id)
    times = np.full(len(entity_ids), event_time_or_now(event_time_ns), np.int64)
    return pa.RecordBatch.from_arrays([pa.array(entity_ids, pa.string()), pa.array(times)], schema=DELETE_SCHEMA)


def to_batch(
    schema: Schema,
    table: Any,
    *,
    event_time_ns: int | None = None,
    max_id_bytes: int | None = None,
    partial: bool = False,
) -> pa.RecordBatch:
    """Many rows as one canonical batch; columns that already have the right type are not copied.

    ``table`` is an Arrow table or record batch, a DataFrame of pandas or Polars, anything else with
    ``__arrow_c_stream__`` (a relation of DuckDB) or ``__arrow_c_array__``, a dict of columns, a list of record batches,
    or a list of dicts, one a row; columns of a dict are as :func:`quorin.engine.rows.intake.arrow_column` takes them.
    It has
    ``entity_id``, the fields in any order, and optionally ``event_time_ns`` as integer nanoseconds, timestamps (naive
    ones are UTC) or dates; without it every row gets the argument, or the present time. Both are refused. ``partial``
    lets fields be left out.

    Missing values of pandas, NaN included, and masked values of NumPy are nulls; only in a column of floats for a float
    field NaN stays NaN.

    :raises InvalidRowError: for missing or unknown columns, for columns of different lengths, for two sources of event
        times, and for the first value that does not fit, with its row.
    :raises EntityIdError: for an id that is null, empty or no text, with its row; ``EntityIdTooLongError`` likewise.
    """
    columns = _columns_of(schema, table)
    if ENTITY_ID not in columns:
        raise InvalidRowError(
            f"schema {schema.__name__!r}: the table has no column {ENTITY_ID!r}; it has {list(columns)}"
        )
    _check_names(schema, [name for name in columns if name not in (ENTITY_ID, EVENT_TIME)], partial=partial)
    fields = [field for field in schema.fields if field.name in columns]
    arrow_schema = subset_schema(schema, [field.name for field in fields]) if partial else canonical_schema(schema)

    ids = cast_entity_ids(columns[ENTITY_ID], max_id_bytes)
    if EVENT_TIME in columns:
        if event_time_ns is not None:
            raise InvalidRowError(
                f"schema {schema.__name__!r}: the table has a column {EVENT_TIME!r}, and event_time_ns="
                f"{event_time_ns!r} was passed: expected one of them"
            )
        times = time_column(columns[EVENT_TIME], EVENT_TIME)
    else:
        times = pa.array(np.full(len(ids), event_time_or_now(event_time_ns), np.int64))
    values = [_field_column(columns[field.name], field) for field in fields]
    for name, column in zip(arrow_schema.names, [ids, times, *values], strict=True):
        if len(column) != len(ids):
            raise InvalidRowError(
                f"schema {schema.__name__!r}: column {name!r} has {len(column)} rows, {ENTITY_ID!r} has {len(ids)}"
            )
    batch = pa.RecordBatch.from_arrays([ids, times, *values], schema=arrow_schema)
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InvalidRowError(
            f"schema {schema.__name__!r}: the table's buffers are no valid Arrow data: {error}"
        ) from error
    return batch


def _checked_row(
    fields: Mapping[str, FeatureField], entity_id: str, values: Mapping[str, Any], event_time_ns: int | None
) -> tuple[Any, ...]:
    check_entity_id(entity_id)
    row = [entity_id, event_time_or_now(event_time_ns)]
    for name, field in fields.items():
        value = check_value(field, values[name])
        row.append(value.tolist() if len(field.shape) > 1 and value is not None else value)
    return tuple(row)


def _struct_batch(rows: Sequence[tuple[Any, ...]], row_type: pa.StructType) -> pa.RecordBatch:
    # One struct is a third of the cost of one array a column.
    return pa.RecordBatch.from_struct_array(pa.array(rows, row_type))


@per_schema
def _row_type(schema: Schema) -> pa.StructType:
    return pa.struct(list(canonical_schema(schema)))


def _check_names(schema: Schema, names: Collection[str], *, partial: bool) -> None:
    fields = fields_by_name(schema)
    for name in names:
        if name not in fields:
            raise InvalidRowError(f"schema {schema.__name__!r} has no field {name!r}; its fields are {list(fields)}")
    if partial:
        if not names:
            raise InvalidRowError(
                f"schema {schema.__name__!r}: a partial row needs at least one of the fields {list(fields)}"
            )
        return
    for name in fields:
        if name not in names:
            raise InvalidRowError(f"schema {schema.__name__!r}: field {name!r} is missing; pass None for a null")


def _columns_of(schema: Schema, table: Any) -> dict[str, Any]:
    if isinstance(table, (list, tuple)) and not table:
        return dict.fromkeys([ENTITY_ID, *fields_by_name(schema)], ())
    try:
        return table_columns(table)
    except InvalidRowError as error:
        raise InvalidRowError(f"schema {schema.__name__!r}: {error}") from error


def _field_column(column: Any, field: FeatureField) -> pa.Array:
    """A column of a table as a field's Arrow type; what Arrow cannot infer a type for goes one value at a time."""
    is_float = field.dtype in (dtype.float32, dtype.float64) and str(getattr(column, "dtype", "")) in _FLOATS
    try:
        return cast_field(arrow_column(column, field.name, nan_is_null=not (is_float or field.shape)), field)
    except NoArrowTypeError as error:
        return checked_column(field, error.values)


def time_column(column: Any, name: str) -> pa.Array:
    """A column of times, as :func:`quorin.engine.rows.intake.arrow_column` takes them, in ``int64`` nanoseconds.

    :raises InvalidRowError: naming the column and the row, for the first value that is null or no time in range.
    """
    try:
        return cast_event_times(arrow_column(column, name), name)
    except NoArrowTypeError as error:
        return pa.array(check_each(name, check_event_time, error.values), pa.int64())
