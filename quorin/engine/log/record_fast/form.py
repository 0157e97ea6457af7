"""Write a record of one row by filling in a form: the record of another row with an equally long id."""

from __future__ import annotations

import operator
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

from quorin.engine.caches import per_schema
from quorin.engine.log.record import BODY_OFFSET, CRC_OFFSET, ROWS_OFFSET, WRITTEN_OFFSET, Kind, encode
from quorin.engine.log.record_fast.template import cached_template
from quorin.engine.rows.batch import checked_row, fields_by_name, rows_batch
from quorin.schema import dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quorin.schema import FeatureField, Schema

_MAX_ID_BYTES = 64
"""Rows with longer ids are encoded as a batch, so that a schema has few forms."""
_CODES = {
    dtype.float32: "f", dtype.float64: "d", dtype.int32: "i", dtype.int64: "q", dtype.uint8: "B", dtype.bool: "B",
}  # fmt: skip
"""One value as Arrow stores it, for ``struct``; a bool is the first bit of its byte."""
_EXACT_TYPES = {code: {"f": float, "i": int, "u": int, "b": bool}[code.numpy.kind] for code in _CODES}


def encode_row(
    schema: Schema,
    entity_id: str,
    values: Mapping[str, Any],
    event_time_ns: int | None = None,
    *,
    written_ns: int | None = None,
) -> bytes:
    """The record that upserts one whole row.

    :raises InvalidRowError: for a missing, unknown or ill-fitting value; an explicit ``None`` is a null.
    :raises EntityIdError: for an id that is empty or not a string.
    """
    forms = _forms(schema)
    record = forms.filled(entity_id, values, event_time_ns, written_ns)
    if record is not None:
        return record
    row = checked_row(schema, entity_id, values, event_time_ns)
    form = None if any(value is None for value in row) else forms.of_size(len(entity_id.encode()))
    if form is None:
        return encode(Kind.upsert, schema, rows_batch(schema, [row]), written_ns=written_ns)
    return form.fill(entity_id.encode(), row[1], row[2:], time.time_ns() if written_ns is None else written_ns)


@per_schema
def _forms(schema: Schema) -> _Forms:
    return _Forms(schema)


class _Forms:
    """The forms of a schema, by the id's size in bytes."""

    __slots__ = ("_by_size", "_fields", "_pick", "_schema", "_types")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._by_size: dict[int, _Form] = {}
        self._fields = fields_by_name(schema)
        # The first name comes twice: of a single name itemgetter would return no tuple.
        self._pick = operator.itemgetter(*self._fields, *list(self._fields)[:1])
        types = [_EXACT_TYPES.get(field.dtype) for field in schema.fields]
        self._types = (*types, *types[:1])

    def of_size(self, id_bytes: int) -> _Form | None:
        """The form for ids of a size in bytes; None if the id is too long, or the schema has other fields than scalar
        numbers.
        """
        form = self._by_size.get(id_bytes)
        if form is None and id_bytes <= _MAX_ID_BYTES and all(map(_is_scalar_number, self._schema.fields)):
            form = self._by_size[id_bytes] = _Form(self._schema, id_bytes)
        return form

    def filled(
        self, entity_id: str, values: Mapping[str, Any], event_time_ns: int | None, written_ns: int | None
    ) -> bytes | None:
        """The record of a row whose values all have exactly the expected types; None for other rows, or without a form.

        None refuses nothing: the row is then checked value by value. Rows that those checks refuse are never filled in
        here, since a number out of range cannot be packed.
        """
        try:
            key = entity_id.encode()
            form = self._by_size.get(len(key))
            if form is None or values.keys() != self._fields.keys():
                return None
            picked = self._pick(values)
            if tuple(map(type, picked)) != self._types or type(entity_id) is not str:
                return None
            now = time.time_ns() if event_time_ns is None or written_ns is None else 0
            if event_time_ns is None:
                event_time_ns = now
            elif type(event_time_ns) is not int:
                return None
            return form.fill(key, event_time_ns, picked[:-1], now if written_ns is None else written_ns)
        except (AttributeError, UnicodeEncodeError, OverflowError, struct.error):
            return None


class _Form:
    """A record of a schema with an id of ``id_bytes``, to be filled in: everything that changes is at its end."""

    __slots__ = ("_head", "_meta", "_pack", "_rows")

    def __init__(self, schema: Schema, id_bytes: int) -> None:
        zeros = [False if field.dtype is dtype.bool else 0 for field in schema.fields]
        record = encode(Kind.upsert, schema, rows_batch(schema, [("x" * id_bytes, 0, *zeros)]), written_ns=0)
        template = cached_template(record)
        assert template is not None  # noqa: S101 - these fields are numbers, and none is null
        self._head, self._rows = record[:WRITTEN_OFFSET], record[ROWS_OFFSET:CRC_OFFSET]
        self._meta = record[BODY_OFFSET : template.id_at]
        codes, end = [f"<{len(self._meta)}s"], template.id_at
        values = [f"{id_bytes}s", "q", *(_CODES[field.dtype] for field in schema.fields)]
        for code, (at, width) in zip(values, [(template.id_at, id_bytes), *template.values_at], strict=True):
            codes.append(f"{at - end}x{code}")
            end = at + width
        self._pack = struct.Struct("".join(codes) + f"{len(record) - end}x").pack
        assert self.fill(b"x" * id_bytes, 0, zeros, 0) == record  # noqa: S101 - Arrow pads with zeros

    def fill(self, key: bytes, event_time_ns: int, values: Sequence[Any], written_ns: int) -> bytes:
        """The record of a row; ``key`` is its id in UTF-8.

        :raises OverflowError, struct.error: for a number that its field cannot hold.
        """
        body = self._pack(self._meta, key, event_time_ns, *values)
        head = b"%b%b%b" % (self._head, written_ns.to_bytes(8, "little", signed=True), self._rows)
        return b"%b%b%b" % (head, zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little"), body)


def _is_scalar_number(field: FeatureField) -> bool:
    return field.shape == () and field.dtype.is_numeric
