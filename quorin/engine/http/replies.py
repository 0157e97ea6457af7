"""Replies about rows of segments, as JSON or Arrow.

JSON has every digit of an integer, ``null`` for a null and for a number that JSON lacks (NaN and infinities), and
base64 for bytes. Arrow has the stored types.
"""

from __future__ import annotations

from base64 import b64encode
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from quorin.engine.log.token import Token, json_of
from quorin.engine.rows.stream import StreamHead
from quorin.schema import dtype

if TYPE_CHECKING:
    from quorin.assembly import Columns
    from quorin.engine.arrays import AnyArray, Float32s, Int64s, Mask
    from quorin.engine.http.looking_back import ChangesFound, LastFound
    from quorin.schema import FeatureField, Schema

_MAX_HEADS = 256
_BLOCK_VALUES = 100_000
"""Values of one call of orjson, which holds the interpreter's lock."""


class Vectors(NamedTuple):
    """The joined vectors, float32 of shape ``(rows, values)``, which rows were found in which schema, bool of shape
    ``(rows, schemas)``, and the schemas with the fields that the vectors hold. Of the shape of ``found``, the log
    positions, int64, if they were asked for, and of rows with age limits, which have no value over its limit. Of rows
    at one position of the log, the position. ``not_held``, of that shape too, says which rows no node has answered for,
    None without any.
    """

    values: Float32s
    found: Mask
    parts: list[tuple[Schema, list[FeatureField]]]
    positions: Int64s | None = None
    fresh: Mask | None = None
    position: int | Token | None = None
    not_held: Mask | None = None


def rows_json(schema: Schema, ids: Any, columns: Columns, *, positions: bool = False) -> bytes:
    """The rows of one schema, column by column."""
    numbers = {"event_time_ns": columns.event_time_ns} | ({"log_position": columns.positions} if positions else {})
    return _dumps(
        {
            "schema": schema.__name__,
            "version": schema.version,
            "entity_ids": _fragment(ids if isinstance(ids, list) else ids.cast(pa.large_string()).to_pylist()),
            "found": _fragment(columns.found),
            **{
                name: _fragment(own if columns.all_found else _with_nulls(own, columns.found))
                for name, own in numbers.items()
            },
            **({} if columns.ages is None else {"fresh": _fragment(columns.fresh)}),
            **({} if columns.not_held is None else {"not_held": _fragment(columns.not_held)}),
            "features": {field.name: _fragment(_values(columns, i)) for i, field in enumerate(columns.fields)},
        }
    )


def rows_arrow(schema: Schema, columns: Columns) -> bytes:
    """The rows of one schema as one record batch, like that of :func:`quorin.assembly.read`."""
    return _stream(columns.to_batch().replace_schema_metadata(_named(schema)))


def vectors_json(vectors: Vectors) -> bytes:
    """The joined vectors, a list for each row."""
    own = vectors.positions
    return _dumps(
        {
            "schemas": _schemas(vectors),
            "columns": _columns(vectors),
            "found": _fragment(vectors.found),
            **({} if own is None else {"log_position": _fragment(_position_rows(vectors, own))}),
            **({} if vectors.fresh is None else {"fresh": _fragment(vectors.fresh)}),
            **({} if vectors.not_held is None else {"not_held": _fragment(vectors.not_held)}),
            **({} if vectors.position is None else {"position": json_of(vectors.position)}),
            "vectors": _fragment(vectors.values),
        }
    )


def vectors_arrow(vectors: Vectors) -> bytes:
    """The joined vectors as one record batch of fixed-size lists; the metadata has ``schemas`` and ``columns``, and
    ``position`` if the rows are at one.
    """
    columns = {"found": _mask(vectors.found)}
    if vectors.fresh is not None:
        columns["fresh"] = _mask(vectors.fresh)
    if vectors.not_held is not None:
        columns["not_held"] = _mask(vectors.not_held)
    metadata = {"schemas": _dumps(_schemas(vectors)), "columns": _dumps(_columns(vectors))}
    if vectors.positions is not None:
        own = pa.array(vectors.positions.reshape(-1), mask=~vectors.found.reshape(-1))
        columns["log_position"] = pa.FixedSizeListArray.from_arrays(own, vectors.found.shape[1])
    if vectors.position is not None:
        metadata["position"] = str(json_of(vectors.position)).encode()
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.values.reshape(-1)), vectors.values.shape[1])
    widths = vectors.found.shape[1], vectors.values.shape[1]
    return _vectors_head(tuple(columns), widths, tuple(metadata.items())).stream([*columns.values()])


@lru_cache(_MAX_HEADS)
def _vectors_head(
    names: tuple[str, ...], widths: tuple[int, int], metadata: tuple[tuple[str, bytes], ...]
) -> StreamHead:
    parts, values = widths
    types = dict.fromkeys(names, pa.list_(pa.bool_(), parts))
    types |= {"vector": pa.list_(pa.float32(), values)}
    if "log_position" in types:
        types["log_position"] = pa.list_(pa.int64(), parts)
    return StreamHead(pa.schema(types, metadata=dict(metadata)))


def last_json(found: LastFound) -> bytes:
    """The last values, two lists for each entity, null where it is not found."""
    ids, is_found, values, times = found.rows.columns
    return _dumps(
        {
            "schema": found.schema.__name__,
            "version": found.schema.version,
            "field": found.field.name,
            "entity_ids": _fragment(ids.cast(pa.large_string()).to_pylist()),
            "found": _fragment(is_found.to_pylist()),
            "values": _fragment(_lists(values)),
            "event_time_ns": _fragment(_lists(times)),
        }
    )


def last_arrow(found: LastFound) -> bytes:
    """The same as one record batch, like that of :func:`quorin.assembly.read_last_batch`."""
    return _stream(found.rows.replace_schema_metadata(_named(found.schema)))


def changes_json(found: ChangesFound) -> bytes:
    """The changed rows, column by column."""
    keys, columns = found.rows.columns[:4], found.rows.columns[4:]
    ids, times, positions, deleted = (column.to_pylist() for column in keys)
    values = zip(found.fields, columns, strict=True)
    return _dumps(
        {
            "schema": found.schema.__name__,
            "version": found.schema.version,
            "through": None if found.through is None else json_of(found.through),
            "entity_ids": _fragment(ids),
            "event_time_ns": _fragment(times),
            "position": _fragment(positions),
            "deleted": _fragment(deleted),
            "features": {field.name: _fragment(_of_arrow(field, column)) for field, column in values},
        }
    )


def changes_arrow(found: ChangesFound) -> bytes:
    """The same as record batches, like those of :func:`quorin.assembly.changed_since`; the metadata has ``through``,
    unless there are more changes.
    """
    metadata = _named(found.schema) | ({} if found.through is None else {"through": str(json_of(found.through))})
    return _stream(found.rows.replace_schema_metadata(metadata))


def _named(schema: Schema) -> dict[str, str]:
    return {"schema": schema.__name__, "version": str(schema.version)}


def _of_arrow(field: FeatureField, column: pa.ChunkedArray) -> list[Any]:
    """A field's values as orjson takes them, from Arrow."""
    array = column.combine_chunks()
    if field.is_variable:
        return _variable(field, array)
    # float32 stays NumPy's, which is written with as few digits as it needs.
    flat = array
    while pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()  # Of rows that are not null.
    numbers = flat.fill_null(False if field.dtype is dtype.bool else 0).to_numpy(zero_copy_only=False)
    if not field.shape:
        return _with_nulls(numbers, array.is_valid().to_numpy(zero_copy_only=False)) if array.null_count else numbers
    rows = iter(numbers.reshape(-1, *field.shape))
    return [next(rows) if is_valid else None for is_valid in array.is_valid().to_pylist()]


def _lists(lists: pa.ListArray) -> list[Any]:
    """Lists of numbers with nulls as orjson takes them."""
    ends, numbers = lists.offsets.to_pylist(), lists.values.fill_null(0).to_numpy(zero_copy_only=False)
    valid = lists.values.is_valid().to_numpy(zero_copy_only=False)
    return [
        _with_nulls(numbers[first:last], valid[first:last]) if is_valid else None
        for (first, last), is_valid in zip(pairwise(ends), lists.is_valid().to_pylist(), strict=True)
    ]


def _mask(mask: Mask) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(mask.reshape(-1)), mask.shape[1])


def _position_rows(vectors: Vectors, positions: Int64s) -> list[list[int | None]]:
    """A list for each row, null where a schema does not have it."""
    pairs = zip(positions.tolist(), vectors.found.tolist(), strict=True)
    return [[own if is_found else None for own, is_found in zip(*row, strict=True)] for row in pairs]


def _schemas(vectors: Vectors) -> list[dict[str, Any]]:
    return [{"schema": schema.__name__, "version": schema.version} for schema, _ in vectors.parts]


def _columns(vectors: Vectors) -> list[dict[str, Any]]:
    """Where each field is in a vector."""
    columns, first = [], 0
    for schema, fields in vectors.parts:
        for field in fields:
            columns.append(
                {"schema": schema.__name__, "field": field.name, "first": first, "count": field.element_count}
            )
            first += field.element_count
    return columns


def _values(columns: Columns, index: int) -> Any:
    """A field's values as orjson takes them."""
    field = columns.fields[index]
    if field.is_variable:
        return _variable(field, columns.arrow(index))
    values, valid = columns.values(index), columns.valid(index)
    if valid.all():
        return values
    if field.dtype.numpy.kind == "f" and not field.shape:
        return np.where(valid, values, field.dtype.numpy.type(np.nan))
    return _with_nulls(values, valid)


def _variable(field: FeatureField, values: pa.Array) -> list[Any]:
    if field.is_list and field.dtype.is_numeric and field.dtype is not dtype.bool:
        ends, numbers = values.offsets.to_numpy(), values.values.to_numpy()
        rows = [numbers[start:end] for start, end in pairwise(ends.tolist())]
        return [row if is_valid else None for row, is_valid in zip(rows, values.is_valid().to_pylist(), strict=True)]
    rows = values.to_pylist()
    return [_base64(row) for row in rows] if field.dtype is dtype.bytes else rows


def _base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_base64(item) for item in value]
    return None if value is None else b64encode(value).decode()


def _with_nulls(values: AnyArray, valid: Mask) -> list[Any]:
    """Rows stay arrays of NumPy, whose float32 are written with as few digits as they need."""
    rows = values.tolist() if values.ndim == 1 else list(values)
    return [row if is_valid else None for row, is_valid in zip(rows, valid.tolist(), strict=True)]


def _fragment(rows: Any) -> orjson.Fragment:
    """Rows as JSON, written in blocks, between which other threads run."""
    width = rows[0].size if isinstance(rows, np.ndarray) and rows.ndim > 1 and len(rows) else 1
    step = max(1, _BLOCK_VALUES // max(1, width))
    if len(rows) <= step:
        return orjson.Fragment(_dumps(rows))
    blocks = [_dumps(rows[start : start + step])[1:-1] for start in range(0, len(rows), step)]
    return orjson.Fragment(b"[" + b",".join(blocks) + b"]")


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _stream(rows: pa.RecordBatch | pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write(rows)
    body: bytes = sink.getvalue().to_pybytes()
    return body
