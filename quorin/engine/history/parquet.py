"""Conversion between canonical rows and the columns of a Parquet file.

=================== ======================= ===========================================================
column              type                    holds
=================== ======================= ===========================================================
``entity_id``       string
``event_time``      timestamp[ns, UTC]      when the event happened
``processing_time`` timestamp[ns, UTC]      when the consumer applied the row
``position``        int64                   the position of its log entry
``kind``            uint8                   1 upsert, 2 delete, 3 partial, as in the log
``partial_fields``  string                  the fields that a partial row sets, separated by commas
``:load``           int64                   the load that the row is of; only files with such rows have the column
the fields          as in the schema        a field that shares a name with a column above is ``<name>:field``
=================== ======================= ===========================================================

Rows are in log order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.engine.history.counted import LOAD
from quorin.engine.log.record import Kind, Record, translate
from quorin.engine.rows.batch import ENTITY_ID, EVENT_TIME, canonical_schema
from quorin.engine.rows.column import numbers
from quorin.errors import CorruptHistoryError, InvalidEntryError
from quorin.schema import schema_to_arrow, schema_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.schema import Schema

UTC_NS = pa.timestamp("ns", "UTC")
SYSTEM_SCHEMA = pa.schema(
    [
        pa.field("entity_id", pa.string(), False),
        pa.field("event_time", UTC_NS, False),
        pa.field("processing_time", UTC_NS, False),
        pa.field("position", pa.int64(), False),
        pa.field("kind", pa.uint8(), False),
        pa.field("partial_fields", pa.string()),
    ]
)
KEY_COLUMNS = ["entity_id", "event_time", "position", "kind", "partial_fields"]
SCHEMA_METADATA = b"quorin.schema"

_ROW_GROUP_BYTES = 16 << 20
_ROW_GROUP_ROWS = (4096, 131_072)
_SAMPLED_ROWS = 4096
_WORTHWHILE = 0.8
"""Floats are compressed only if that reduces them to at most this share of their size."""


def column_name(field_name: str) -> str:
    """The column of a field. Field names are identifiers, so none contains a colon."""
    return f"{field_name}:field" if field_name in SYSTEM_SCHEMA.names else field_name


def file_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a schema's files."""
    fields = [pa.field(column_name(field.name), field.type) for field in schema_to_arrow(schema)]
    return pa.schema([*SYSTEM_SCHEMA, *fields], metadata={SCHEMA_METADATA: schema_to_json(schema).encode()})


def to_table(
    schema: Schema, batch: pa.RecordBatch, positions: pa.Array, kind: Kind, processing_ns: int, *, load: int = 0
) -> pa.Table:
    """Canonical rows as columns of a file; fields that the batch lacks are null. ``load`` is the load of all rows."""
    count = batch.num_rows
    names = batch.schema.names[2:]
    partial = ",".join(names) if kind is Kind.partial else None
    columns: list[Any] = [
        batch.column(0),
        batch.column(1).cast(UTC_NS),
        pa.repeat(pa.scalar(processing_ns, UTC_NS), count),
        positions,
        pa.repeat(pa.scalar(int(kind), pa.uint8()), count),
        pa.repeat(pa.scalar(partial, pa.string()), count),
    ]
    columns += [
        batch.column(field.name) if field.name in names else pa.nulls(count, field.type)
        for field in schema_to_arrow(schema)
    ]
    table = pa.Table.from_arrays(columns, schema=file_schema(schema))
    return table.append_column(LOAD, pa.repeat(pa.scalar(load, pa.int64()), count)) if load else table


def writer_options(rows: pa.Table, compression: str) -> dict[str, Any]:
    """Encoding options for a file that begins with these rows. Dictionaries would merge the NaNs of floats.

    Float columns whose sample hardly shrinks stay uncompressed: reading them is then twice as fast.
    """
    arrow_schema = rows.schema
    dictionaries = [
        field.name for field in arrow_schema if pa.types.is_string(field.type) or field.name in SYSTEM_SCHEMA.names
    ]
    dictionaries.remove("event_time")
    return {
        "compression": _compressions(rows.slice(0, _SAMPLED_ROWS), compression.lower()),
        "use_dictionary": dictionaries,
        "write_statistics": ["position", "kind", "event_time"],
        "store_schema": True,
        "write_page_checksum": True,
    }


def _compressions(sample: pa.Table, compression: str) -> str | dict[str, str]:
    """The compression of each column of a file, by its Parquet path."""
    if compression in ("none", "uncompressed"):
        return compression
    chosen = {}
    for name, column in zip(sample.schema.names, sample.columns, strict=True):
        path, values = name, column.combine_chunks()
        while pa.types.is_nested(values.type):
            path, values = f"{path}.list.element", values.flatten()
        is_float = pa.types.is_floating(values.type)
        chosen[path] = "none" if is_float and not _shrinks(values.drop_null(), compression) else compression
    return chosen


def _shrinks(values: pa.Array, compression: str) -> bool:
    plain = np.ascontiguousarray(values.to_numpy(zero_copy_only=False))
    return not plain.size or pa.Codec(compression).compress(plain).size <= _WORTHWHILE * plain.nbytes


def row_group_rows(table_bytes: int, rows: int) -> int:
    """The number of rows per row group, so that a decoded group is neither large nor tiny."""
    least, most = _ROW_GROUP_ROWS
    return max(least, min(most, _ROW_GROUP_BYTES * max(1, rows) // max(1, table_bytes)))


def check_columns(path: str, arrow_schema: pa.Schema) -> None:
    """:raises CorruptHistoryError: if a Parquet file lacks a column of the history."""
    for field in SYSTEM_SCHEMA:
        if field.name not in arrow_schema.names:
            raise CorruptHistoryError(f"{path} is no file of a history: it has no column {field.name!r} ({field.type})")


def field_columns(schema: Schema, arrow_schema: pa.Schema) -> list[str]:
    """The columns of a file with fields of a schema; a file of another version may lack some."""
    there = set(arrow_schema.names)
    return [column_name(field.name) for field in schema.fields if column_name(field.name) in there]


def canonical(schema: Schema, path: str, rows: pa.RecordBatch, kind: Kind, fields: list[str] | None) -> pa.RecordBatch:
    """Rows of a file in canonical form, with all fields or only ``fields``. Columns: ids, times, fields.

    :raises CorruptHistoryError: if a stored type does not widen to the schema's.
    """
    places = {name: place for place, name in enumerate(rows.schema.names)}
    names, columns = [ENTITY_ID, EVENT_TIME], [rows.column("entity_id"), rows.column("event_time").cast(pa.int64())]
    for field in schema.fields if kind is not Kind.delete else ():
        place = places.get(column_name(field.name))
        if place is not None and (fields is None or field.name in fields):
            names.append(field.name)
            columns.append(rows.column(place))
    if kind is Kind.upsert and [column.type for column in columns] == _flat_types(schema):
        return pa.RecordBatch.from_arrays(columns, schema=canonical_schema(schema))
    batch = pa.RecordBatch.from_arrays(columns, names=names)
    try:
        return translate(Record(kind, schema.__name__, 0, 0, len(batch), batch), schema)
    except InvalidEntryError as error:
        raise CorruptHistoryError(f"{path} does not fit version {schema.version}: {error}") from error


def _flat_types(schema: Schema) -> list[pa.DataType] | None:
    """The types of a canonical batch, if they describe it; None with lists, whose elements must not be null."""
    types: list[pa.DataType] = canonical_schema(schema).types
    return None if any(pa.types.is_nested(kind) for kind in types) else types


def split(schema: Schema, path: str, rows: pa.RecordBatch) -> Iterator[tuple[Kind, pa.RecordBatch, pa.Array]]:
    """Rows of a file as canonical batches of one kind each, with their positions, in the order to apply them."""
    kinds = numbers(rows.column("kind"), np.uint8)
    if not len(kinds):
        return
    if (kinds != Kind.partial).all():
        # Rows of different kinds never share an event time and a position, so their order decides nothing.
        for kind in (Kind.upsert, Kind.delete):
            chosen = kinds == kind
            if chosen.any():
                part = rows if chosen.all() else rows.filter(pa.array(chosen))
                yield kind, canonical(schema, path, part, kind, None), part.column("position")
        return
    sets = rows.column("partial_fields").dictionary_encode()
    codes = numbers(sets.indices.fill_null(-1), np.int32)
    starts = np.flatnonzero(np.diff(kinds) | np.diff(codes)) + 1
    for start, stop in zip([0, *starts], [*starts, len(kinds)], strict=True):
        part, kind = rows.slice(start, stop - start), Kind(int(kinds[start]))
        named = sets.dictionary[int(codes[start])].as_py() if codes[start] >= 0 else None
        fields = named.split(",") if kind is Kind.partial and named else ([] if kind is Kind.partial else None)
        yield kind, canonical(schema, path, part, kind, fields), part.column("position")
