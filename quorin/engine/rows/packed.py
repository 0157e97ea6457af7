"""Values on their way into the kernels: Arrow columns, and packed rows.

A *packed row* is the body of a row as bytes (see :mod:`quorin.engine.format.segment`) followed by the bytes of its
variable-size values; a cell's offset then counts from the end of the body. It depends on the schema alone, not on a
segment.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin.engine.caches import per_schema
from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    ARROW_ITEMS,
    C_OFFSET_BYTES,
    C_OFFSETS,
    C_VALUES,
    COLUMN_ITEMS,
    KIND_FIXED,
    KIND_TEXT_LIST,
    KIND_VARIABLE,
)
from quorin.engine.rows.batch import DELETE_SCHEMA, canonical_schema, fields_by_name
from quorin.engine.rows.rings import ring_table
from quorin.engine.rows.value import check_value
from quorin.errors import InvalidRowError
from quorin.schema import FeatureField, Schema, dtype

if TYPE_CHECKING:
    from quorin.engine.arrays import Int64s

_NULL = np.zeros(1, np.uint8)
_NULL_ADDRESS = _NULL.ctypes.data

_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class ColumnTable:
    """Columns as the write kernels take them: ``words``, and the objects that own the memory it points to.

    ``tie`` is where the column of the schema's tie-breaker begins in ``words``, -1 if it has none.
    """

    def __init__(self, schema: Schema, words: Int64s | None = None, owner: Any = None) -> None:
        self._tie_breaker = schema.tie_breaker
        self._schema = schema
        self._rings = None if fmt.body_layout(schema).rings else (0, 0)
        self.tie = -1
        if words is not None and schema.tie_breaker is not None:
            self.tie = COLUMN_ITEMS * list(fields_by_name(schema)).index(schema.tie_breaker)
        self._rows: list[tuple[int, ...]] = []
        self._words = words
        self._owners: list[Any] = [_NULL, owner]

    @property
    def words(self) -> Int64s:
        """The flat table, ``COLUMN_ITEMS`` words a column."""
        return np.array(self._rows, np.int64).ravel() if self._words is None else self._words

    @property
    def rings(self) -> tuple[int, int]:
        """The address of the table of rings, with the column of each in this table, and their number; 0 for none."""
        if self._rings is None:
            table = self.keep(ring_table(self._schema, self.words))
            self._rings = int(table.ctypes.data), len(fmt.body_layout(self._schema).rings)
        return self._rings

    def keep(self, owner: Any) -> Any:
        """Hold on to an object that owns memory."""
        self._owners.append(owner)
        return owner

    def add(
        self,
        cell: fmt.Cell,
        *,
        kind: int,
        values: int,
        item_bytes: int,
        validity: tuple[int, int],
        offsets: tuple[int, int] = (0, 0),
        inner: tuple[int, int] = (0, 0),
    ) -> None:
        """One column: addresses of its parts; ``validity`` with its first bit, offsets with their width in bytes."""
        null = (cell.null_byte, cell.null_mask)
        if cell.field.name == self._tie_breaker:
            self.tie = COLUMN_ITEMS * len(self._rows)
        self._rows.append((cell.offset, *null, kind, values, item_bytes, *validity, *offsets, *inner))


class Located:
    """Where the kernels find a canonical batch: ``ids`` (offsets, their width in bytes, bytes), ``times``, and the
    fields, without copying (booleans, which Arrow keeps as bits, become bytes). It keeps what it points to.
    """

    __slots__ = ("columns", "ids", "times")

    def __init__(self, columns: ColumnTable, ids: tuple[int, int, int], times: int) -> None:
        self.columns = columns
        self.ids = ids
        self.times = times


def locate(schema: Schema, batch: pa.RecordBatch) -> Located:
    """Find the columns of a batch with some of the fields, or none."""
    plan = _arrow_plan(schema)
    if plan is None or not batch.schema.equals(canonical_schema(schema)):
        return _locate_in_general(schema, batch)
    from quorin.engine import kernels

    # The capsules keep what they point to, and release it when they are collected.
    _, capsule = exported = batch.__arrow_c_array__()
    words = np.empty(plan.size // ARROW_ITEMS * COLUMN_ITEMS, np.int64)
    kernels.arrow_columns(_pointer_of(capsule, b"arrow_array"), plan, _NULL_ADDRESS, words)
    first = words[: 2 * COLUMN_ITEMS].tolist()
    ids, times = (first[C_OFFSETS], first[C_OFFSET_BYTES], first[C_VALUES]), first[COLUMN_ITEMS + C_VALUES]
    return Located(ColumnTable(schema, words[2 * COLUMN_ITEMS :], (words, exported)), ids, times)


def _locate_in_general(schema: Schema, batch: pa.RecordBatch) -> Located:
    """What :func:`locate` returns, for any batch: found column by column, in Python."""
    ids, times = batch.column(0), batch.column(1)
    times_at = times.buffers()[1].address + 8 * times.offset if len(times) else 0
    return Located(general_columns(schema, batch), text_addresses(ids), times_at)


def general_columns(schema: Schema, batch: pa.RecordBatch) -> ColumnTable:
    """The fields of any batch with some of them, for the kernels: column by column, in Python.

    Without a column for the schema's tie-breaker it is null in all rows, so that no row keeps that of an older event.
    """
    table = ColumnTable(schema)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for cell in fmt.body_layout(schema).cells:
        column = columns.get(cell.field.name)
        if column is not None:
            _add_arrow_column(table, cell, table.keep(column))
        elif cell.field.name == schema.tie_breaker:
            no_bits = table.keep(np.zeros(batch.num_rows // 8 + 1, np.uint8))
            size = cell.field.byte_count
            table.add(cell, kind=KIND_FIXED, values=_NULL_ADDRESS, item_bytes=size, validity=(no_bits.ctypes.data, 0))
    return table


def text_addresses(array: pa.Array) -> tuple[int, int, int]:
    """Of a string or binary array: where its offsets begin, how wide they are, where its bytes begin."""
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    width = 8 if large else 4
    _, offsets, data = array.buffers()
    if offsets is None:
        return _NULL.ctypes.data, width, _NULL.ctypes.data
    return offsets.address + array.offset * width, width, data.address if data is not None else _NULL.ctypes.data


def pack_row(schema: Schema, fields: Mapping[str, Any]) -> bytes:
    """Pack one row.

    :raises InvalidRowError: for a missing or unknown field, or a value that its field can't hold unchanged.
    """
    _check_field_names(schema, fields)
    layout = fmt.body_layout(schema)
    body = bytearray(layout.byte_count)
    tail = bytearray()
    for cell in layout.cells:
        value = check_value(cell.field, fields[cell.field.name])
        if value is None:
            continue
        body[cell.null_byte] |= cell.null_mask
        if not cell.field.is_variable:
            content = np.asarray(value, cell.field.dtype.numpy).tobytes()
        else:
            stored, count = _variable_content(cell.field, value)
            content = np.array((len(tail), len(stored), count), fmt.VAR_CELL).tobytes()
            tail += stored + bytes(-len(stored) % fmt.HEAP_ALIGNMENT)
        body[cell.offset : cell.offset + len(content)] = content
    return bytes(body + tail)


def unpack_row(schema: Schema, row: bytes) -> dict[str, Any]:
    """The values of a packed row by field name, ``None`` where null; shaped fields and numeric lists as arrays.

    :raises InvalidRowError: if the bytes are no packed row of the schema.
    """
    layout = fmt.body_layout(schema)
    check_packed_row(schema, row)
    return {
        cell.field.name: _value_at(row, cell, layout.byte_count) if row[cell.null_byte] & cell.null_mask else None
        for cell in layout.cells
    }


def check_packed_row(schema: Schema, row: object) -> None:
    """Refuse bytes that are too short or too long for the schema, or whose cells point outside."""
    layout = fmt.body_layout(schema)
    if not isinstance(row, (bytes, bytearray, memoryview)):
        raise InvalidRowError(f"a row must be the bytes that pack_row returns, got {type(row).__name__}")
    expected = layout.byte_count
    for cell in layout.cells if len(row) >= layout.byte_count else ():
        if cell.field.is_variable and row[cell.null_byte] & cell.null_mask:
            cell_value = np.frombuffer(row, fmt.VAR_CELL, 1, cell.offset)[0]
            if int(cell_value["offset"]) + layout.byte_count != expected:
                raise InvalidRowError(
                    f"field {cell.field.name!r} of a packed {schema.__name__} row points to {cell_value}"
                )
            expected += fmt.align(int(cell_value["bytes"]), fmt.HEAP_ALIGNMENT)
    if len(row) != expected:
        raise InvalidRowError(f"a packed {schema.__name__} row must have {expected} bytes, got {len(row)}")


def packed_columns(schema: Schema, row: bytes) -> ColumnTable:
    """One packed row as a batch of one for the write kernels."""
    check_packed_row(schema, row)
    layout = fmt.body_layout(schema)
    table = ColumnTable(schema)
    memory = table.keep(np.frombuffer(row, np.uint8))
    base = memory.ctypes.data
    for cell in layout.cells:
        is_null = not row[cell.null_byte] & cell.null_mask
        validity = (_NULL.ctypes.data if is_null else 0, 0)
        if not cell.field.is_variable:
            size = cell.field.byte_count
            table.add(cell, kind=KIND_FIXED, values=base + cell.offset, item_bytes=size, validity=validity)
            continue
        cell_value = np.frombuffer(row, fmt.VAR_CELL, 1, cell.offset)[0]
        start, count = layout.byte_count + int(cell_value["offset"]), int(cell_value["count"])
        ends = table.keep(np.array([0, count], np.int64))
        offsets = (ends.ctypes.data, 8)
        if _is_text_list(cell.field):
            inner = np.zeros(count + 1, np.int64)
            inner[1:] = np.frombuffer(row, "<u4", count, start)
            table.keep(inner)
            data = base + start + 4 * count
            table.add(
                cell, kind=KIND_TEXT_LIST, values=data, item_bytes=1, validity=validity, offsets=offsets,
                inner=(inner.ctypes.data, 8),
            )  # fmt: skip
        else:
            size = cell.field.dtype.item_size
            table.add(
                cell, kind=KIND_VARIABLE, values=base + start, item_bytes=size, validity=validity, offsets=offsets
            )
    return table


@per_schema
def _arrow_plan(schema: Schema) -> Int64s | None:
    """Where the kernel finds the columns of a canonical batch; None if it cannot read some of them as they are."""
    if not all(field.dtype is not dtype.bool and len(field.shape) <= 1 for field in schema.fields):
        return None
    rows = [(0, 0, 0, 0, KIND_VARIABLE, 1, 1, 0), (1, 0, 0, 0, KIND_FIXED, 8, 8, 0)]  # the ids and event times
    for index, cell in enumerate(fmt.body_layout(schema).cells):
        field, size = cell.field, cell.field.dtype.item_size
        kind = KIND_TEXT_LIST if _is_text_list(field) else KIND_VARIABLE if field.is_variable else KIND_FIXED
        cell_bytes = size if field.is_variable else field.byte_count
        list_size = -1 if field.is_list else int(field.shape[0] or 0) if field.shape else 0
        column = index + len(DELETE_SCHEMA)
        rows.append((column, cell.offset, cell.null_byte, cell.null_mask, kind, cell_bytes, size, list_size))
    return np.array(rows, np.int64).ravel()


def _add_arrow_column(table: ColumnTable, cell: fmt.Cell, array: pa.Array) -> None:
    field = cell.field
    validity_buffer = array.buffers()[0] if array.null_count else None
    validity = (validity_buffer.address if validity_buffer is not None else 0, array.offset)
    if not field.is_variable:
        values, first = _fixed_leaf(table, array)
        address = values + first * field.dtype.item_size
        table.add(cell, kind=KIND_FIXED, values=address, item_bytes=field.byte_count, validity=validity)
    elif not field.is_list:
        offsets, width, data = text_addresses(array)
        table.add(cell, kind=KIND_VARIABLE, values=data, item_bytes=1, validity=validity, offsets=(offsets, width))
    else:
        offset_buffer = array.buffers()[1]
        offsets = offset_buffer.address + 4 * array.offset if offset_buffer is not None else _NULL.ctypes.data
        child = array.values
        if _is_text_list(field):
            inner, width, data = text_addresses(child)
            table.add(
                cell, kind=KIND_TEXT_LIST, values=data, item_bytes=1, validity=validity, offsets=(offsets, 4),
                inner=(inner, width),
            )  # fmt: skip
        else:
            values, first = _fixed_leaf(table, child)
            size = field.dtype.item_size
            table.add(
                cell, kind=KIND_VARIABLE, values=values + first * size, item_bytes=size, validity=validity,
                offsets=(offsets, 4),
            )  # fmt: skip


def _fixed_leaf(table: ColumnTable, array: pa.Array) -> tuple[int, int]:
    """Address of the numbers under (nested fixed-size lists of) an array, and the index of the first that belongs to
    it.
    """
    first = 0
    while pa.types.is_fixed_size_list(array.type):
        first = (first + array.offset) * array.type.list_size
        array = array.values
    if pa.types.is_boolean(array.type):
        array = table.keep(array.cast(pa.uint8()))
    data = array.buffers()[1]
    return (data.address if data is not None else _NULL.ctypes.data), first + array.offset


def _is_text_list(field: FeatureField) -> bool:
    return field.is_list and not field.dtype.is_numeric


def _variable_content(field: FeatureField, value: Any) -> tuple[bytes, int]:
    """What a variable-size value stores in the heap, and its element count."""
    if not field.is_list:
        stored = value.encode() if field.dtype is dtype.string else value
        return stored, len(stored)
    if field.dtype.is_numeric:
        return np.ascontiguousarray(value, field.dtype.numpy).tobytes(), len(value)
    items = [item.encode() if field.dtype is dtype.string else item for item in value]
    ends = np.cumsum([len(item) for item in items], dtype="<u4")
    return ends.tobytes() + b"".join(items), len(items)


def _value_at(row: bytes, cell: fmt.Cell, tail: int) -> Any:
    field = cell.field
    if not field.is_variable:
        values = np.frombuffer(row, field.dtype.numpy, field.element_count, cell.offset)
        return values[0].item() if field.shape == () else values.reshape(field.shape)
    cell_value = np.frombuffer(row, fmt.VAR_CELL, 1, cell.offset)[0]
    start, count = tail + int(cell_value["offset"]), int(cell_value["count"])
    if field.is_list and field.dtype.is_numeric:
        return np.frombuffer(row, field.dtype.numpy, count, start)
    stored = bytes(row[start : start + int(cell_value["bytes"])])
    if not field.is_list:
        return stored.decode() if field.dtype is dtype.string else stored
    ends = np.frombuffer(stored, "<u4", count).tolist()
    items = [stored[4 * count + a : 4 * count + b] for a, b in zip([0, *ends], ends, strict=False)]
    return [item.decode() for item in items] if field.dtype is dtype.string else items


def _check_field_names(schema: Schema, fields: Mapping[str, Any]) -> None:
    names = [field.name for field in schema.fields]
    missing = [name for name in names if name not in fields]
    extra = [name for name in fields if name not in names]
    if missing or extra:
        parts = [f"missing {missing}"] * bool(missing) + [f"unknown {extra}"] * bool(extra)
        raise InvalidRowError(f"a {schema.__name__} row needs every field (None for a null): {', '.join(parts)}")
