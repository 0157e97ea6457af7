"""Records of one row each, without making an Arrow batch of every one of them.

Making such a batch and serializing it costs more than a write to the log, and decoding it more than applying it. But
the records of two rows of scalar numbers whose ids are equally long differ only in their values, so that one serves as
the template of the other. Where the values stand in it Arrow tells itself: the columns of a decoded record are views of
its bytes. What comes out is what :func:`quorin.record.encode` and :func:`quorin.record.decode` make, byte for byte and
row for row.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from quorin.columns import text_lengths
from quorin.errors import InvalidEntryError
from quorin.record import (
    BODY_OFFSET,
    CRC_OFFSET,
    ROWS_OFFSET,
    WRITTEN_OFFSET,
    Kind,
    Record,
    batch_in,
    decode,
    encode,
    is_sealed,
    peek,
    seal,
)
from quorin.rows import checked_row, rows_batch
from quorin.schema import dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quorin.schema import FeatureField, Schema

_LONGEST_ID_BYTES = 64
_END, _SIZE, _BUFFER = struct.Struct("<i"), struct.Struct("<q"), struct.Struct("<qq")
_MOST_TEMPLATES = 1024
_PACKERS: dict[dtype, struct.Struct] = {
    dtype.float32: struct.Struct("<f"),
    dtype.float64: struct.Struct("<d"),
    dtype.int32: struct.Struct("<i"),
    dtype.int64: struct.Struct("<q"),
    dtype.uint8: struct.Struct("<B"),
    dtype.bool: struct.Struct("<B"),
}
"""One value as Arrow keeps it; a bool is the first bit of its byte."""


def encode_row(
    schema: Schema,
    entity_id: str,
    values: Mapping[str, Any],
    event_time_ns: int | None = None,
    *,
    written_ns: int | None = None,
) -> bytes:
    """An upsert of one whole row as a record.

    :raises InvalidRowError: for a missing, unknown or ill-fitting value; an explicit ``None`` is a null.
    :raises EntityIdError: for an id that is empty or no text.
    """
    row = checked_row(schema, entity_id, values, event_time_ns)
    forms = _forms.get(schema)
    if forms is None:
        forms = _forms[schema] = {}
    key = entity_id.encode()
    form = forms.get(len(key))
    if form is None and len(key) <= _LONGEST_ID_BYTES and all(map(_is_scalar_number, schema.fields)):
        form = forms[len(key)] = _Form(schema, len(key))
    if form is None or None in row:
        return encode(Kind.upsert, schema, rows_batch(schema, [row]), written_ns=written_ns)
    return form.fill(key, row, time.time_ns() if written_ns is None else written_ns)


def likeness(payload: bytes) -> tuple[int, bytes, bytes]:
    """Records that :func:`decode_alike` takes together have the same; others may as well."""
    return len(payload), payload[:WRITTEN_OFFSET], payload[ROWS_OFFSET:CRC_OFFSET]


def decode_alike(payloads: Sequence[bytes]) -> Record | None:
    """Records of one row each as one record, with their rows in this order, and the last one's time of making.

    None if they differ in more than values, have anything else than numbers, or one of them is damaged:
    :func:`quorin.record.decode` tells which, and takes all.
    """
    try:
        template = _template_of(payloads[0])
        if template is None or not all(map(template.fits, payloads)):
            return None
        batch = template.batch(payloads)
    except InvalidEntryError:
        return None
    last = peek(payloads[-1])
    return Record(last.kind, last.schema_name, last.fingerprint, last.written_ns, len(payloads), batch)


def _template_of(record: bytes) -> _Template | None:
    key = likeness(record)
    if key not in _templates:
        template = _Template.of(record)  # A damaged record makes none, and must not stand in the way of the next.
        if len(_templates) >= _MOST_TEMPLATES:
            _templates.clear()
        _templates[key] = template
    return _templates.get(key)


class _Template:
    """A record of one row of numbers, and where in it id, event time and values stand.

    Arrow pads an id to a multiple of 8 bytes. So records whose ids are a little longer or shorter have the same layout,
    and say the length in two places: the second of the offsets, and the size of the buffer, in Arrow's metadata.
    """

    __slots__ = ("_bytes", "_end_at", "_mask", "_rest", "_room", "_schema", "_size_at", "id_at", "values_at")

    def __init__(self, record: bytes, batch: pa.RecordBatch) -> None:
        start = pa.py_buffer(record).address
        ids, *values = batch.columns
        offsets_at = ids.buffers()[1].address - start
        size = int(text_lengths(ids)[0])
        self._bytes = len(record)
        self._schema = batch.schema
        self.id_at = ids.buffers()[2].address - start
        self.values_at = [(column.buffers()[1].address - start, _width(column.type)) for column in values]
        self._end_at = offsets_at + _END.size
        self._size_at = record.find(_BUFFER.pack(self.id_at - offsets_at, size), 0, max(0, offsets_at)) + 8
        self._room = -(-size // 8) * 8
        mask = bytearray(b"\xff" * len(record))
        for at, width in self._varying():
            mask[at : at + width] = bytes(width)
        self._mask = int.from_bytes(mask, "little")
        self._rest = int.from_bytes(record, "little") & self._mask

    @classmethod
    def of(cls, record: bytes) -> _Template | None:
        """The template that a record makes; None if it does not have one row, or anything else than numbers in it.

        :raises InvalidEntryError: if it cannot be decoded.
        """
        batch = decode(record).batch
        plain = all(pt.is_primitive(column.type) and column.buffers()[0] is None for column in batch.columns[1:])
        if batch.num_rows != 1 or not plain or batch.column(0).buffers()[0] is not None:
            return None
        template = cls(record, batch)
        # Arrow may also have put a column elsewhere, as where it was compressed.
        is_here = all(BODY_OFFSET <= at <= len(record) - width for at, width in template._varying()[2:])
        return template if is_here and template.fits(record) else None

    def _varying(self) -> list[tuple[int, int]]:
        """The places, and how many bytes each, in which records differ that have the same layout."""
        in_head = [(WRITTEN_OFFSET, 8), (CRC_OFFSET, 4)]
        return [*in_head, (self._size_at, 8), (self._end_at, _END.size), (self.id_at, self._room), *self.values_at]

    def fits(self, record: bytes) -> bool:
        """Whether a record is whole, and this one but for its id and values."""
        return (
            len(record) == self._bytes
            and int.from_bytes(record, "little") & self._mask == self._rest
            and 0 < _END.unpack_from(record, self._end_at)[0] <= self._room
            and _SIZE.unpack_from(record, self._size_at) == _END.unpack_from(record, self._end_at)
            and is_sealed(record)
        )

    def batch(self, records: Sequence[bytes]) -> pa.RecordBatch:
        """The rows of records that fit. :raises InvalidEntryError: if an id is no UTF-8."""
        if len(records) == 1:
            return batch_in(records[0])
        count = len(records)
        rows = np.frombuffer(b"".join(records), np.uint8).reshape(count, self._bytes)
        columns = [pa.Array.from_buffers(pa.string(), count, self._ids(records))]
        for kind, (at, width) in zip(self._schema.types[1:], self.values_at, strict=True):
            if pt.is_boolean(kind):
                data = np.packbits(rows[:, at] & 1, bitorder="little")
            else:
                data = np.ascontiguousarray(rows[:, at : at + width])
            columns.append(pa.Array.from_buffers(kind, count, [None, pa.py_buffer(data)]))
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InvalidEntryError(f"a record's Arrow data cannot be decoded: {error}") from error
        return batch

    def _ids(self, records: Sequence[bytes]) -> list[pa.Buffer | None]:
        at, end_at = self.id_at, self._end_at
        ids = [record[at : at + _END.unpack_from(record, end_at)[0]] for record in records]
        ends = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([len(entity_id) for entity_id in ids], out=ends[1:])
        return [None, pa.py_buffer(ends), pa.py_buffer(b"".join(ids))]


class _Form:
    """The template of a schema's rows whose ids are equally long, to be filled in."""

    __slots__ = ("_packs", "_record", "_template")

    def __init__(self, schema: Schema, id_bytes: int) -> None:
        zeros = [False if field.dtype is dtype.bool else 0 for field in schema.fields]
        self._record = encode(Kind.upsert, schema, rows_batch(schema, [("x" * id_bytes, 0, *zeros)]))
        template = _Template.of(self._record)
        assert template is not None  # noqa: S101 - these fields are numbers, and none is null
        self._template = template
        self._packs = [_PACKERS[dtype.int64].pack_into, *(_PACKERS[field.dtype].pack_into for field in schema.fields)]

    def fill(self, key: bytes, row: tuple[Any, ...], written_ns: int) -> bytes:
        """The record of a row, whose id is given as UTF-8 too."""
        template, record = self._template, bytearray(self._record)
        record[template.id_at : template.id_at + len(key)] = key
        for pack, (at, _), value in zip(self._packs, template.values_at, row[1:], strict=True):
            pack(record, at, value)
        return seal(record, written_ns)


def _is_scalar_number(field: FeatureField) -> bool:
    return field.shape == () and field.dtype.is_numeric


def _width(kind: pa.DataType) -> int:
    return 1 if pt.is_boolean(kind) else kind.bit_width // 8


_forms: WeakKeyDictionary[Schema, dict[int, _Form]] = WeakKeyDictionary()
_templates: dict[tuple[int, bytes, bytes], _Template | None] = {}
