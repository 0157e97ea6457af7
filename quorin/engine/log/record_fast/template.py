"""Records of one row each, without making an Arrow batch of every one of them.

Making such a batch and serializing it costs more than a write to the log, and decoding it more than applying it. But
the records of two rows of scalar numbers whose ids are equally long differ only in their values, so that one serves as
the template of the other. Where the values stand in it Arrow tells itself: the columns of a decoded record are views of
its bytes. What comes out is what :func:`quorin.engine.log.record.encode` and :func:`quorin.engine.log.record.decode`
make, byte for byte and row for row.
"""

from __future__ import annotations

import operator
import struct
import time
import weakref
import zlib
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from quorin.engine.log.record import (
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
)
from quorin.engine.rows.batch import checked_row, fields_by_name, rows_batch
from quorin.engine.rows.column import text_lengths
from quorin.errors import InvalidEntryError
from quorin.schema import dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quorin.schema import FeatureField, Schema

_LONGEST_ID_BYTES = 64
_END, _SIZE, _BUFFER = struct.Struct("<i"), struct.Struct("<q"), struct.Struct("<qq")
_MOST_TEMPLATES = 1024
_CODES = {
    dtype.float32: "f", dtype.float64: "d", dtype.int32: "i", dtype.int64: "q", dtype.uint8: "B", dtype.bool: "B",
}  # fmt: skip
"""One value as Arrow keeps it, for ``struct``; a bool is the first bit of its byte."""
_EXACT_TYPES = {code: {"f": float, "i": int, "u": int, "b": bool}[code.numpy.kind] for code in _CODES}


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
    forms = _forms.get(schema)
    if forms is None:
        forms = _forms[schema] = _Forms(schema)
    record = forms.filled(entity_id, values, event_time_ns, written_ns)
    if record is not None:
        return record
    row = checked_row(schema, entity_id, values, event_time_ns)
    form = None if any(value is None for value in row) else forms.of_size(len(entity_id.encode()))
    if form is None:
        return encode(Kind.upsert, schema, rows_batch(schema, [row]), written_ns=written_ns)
    return form.fill(entity_id.encode(), row[1], row[2:], time.time_ns() if written_ns is None else written_ns)


def likeness(payload: bytes) -> tuple[int, bytes, bytes]:
    """Records that :func:`decode_alike` takes together have the same; others may as well."""
    return len(payload), payload[:WRITTEN_OFFSET], payload[ROWS_OFFSET:CRC_OFFSET]


def template_of(payloads: Sequence[bytes]) -> Template | None:
    """The template that all of these records fit: they are whole, have one row each, and differ in id, event time and
    values only. None if there is no such template.
    """
    try:
        template = _template_of(payloads[0])
    except InvalidEntryError:
        return None
    return template if template is not None and all(map(template.fits, payloads)) else None


def decode_alike(payloads: Sequence[bytes]) -> Record | None:
    """Records of one row each as one record, with their rows in this order, and the last one's time of making.

    None if no template fits them, or an id is no text: :func:`quorin.engine.log.record.decode` tells which, and takes
    all.
    """
    template = template_of(payloads)
    if template is None:
        return None
    try:
        batch = template.batch(payloads)
    except InvalidEntryError:
        return None
    last = peek(payloads[-1])
    return Record(last.kind, last.schema_name, last.fingerprint, last.written_ns, len(payloads), batch)


def _template_of(record: bytes) -> Template | None:
    key = likeness(record)
    if key not in _templates:
        template = Template.of(record)  # A damaged record makes none, and must not stand in the way of the next.
        if len(_templates) >= _MOST_TEMPLATES:
            _templates.clear()
        _templates[key] = template
    return _templates.get(key)


class Template:
    """A record of one row of numbers, and where in it id, event time and values stand.

    Arrow pads an id to a multiple of 8 bytes. So records whose ids are a little longer or shorter have the same layout,
    and say the length in two places: the second of the offsets, and the size of the buffer, in Arrow's metadata.
    """

    __slots__ = (
        "_bools_at", "_end_at", "_mask", "_rest", "_room", "_size_at", "arrow_schema", "id_at", "kind", "offsets_at",
        "schema_name", "size", "values_at",
    )  # fmt: skip

    def __init__(self, payload: bytes, record: Record) -> None:
        start, batch = pa.py_buffer(payload).address, record.batch
        ids, *values = batch.columns
        id_size = int(text_lengths(ids)[0])
        self.kind = record.kind
        self.schema_name = record.schema_name
        self.arrow_schema = batch.schema
        self.size = len(payload)
        self.offsets_at = ids.buffers()[1].address - start
        self.id_at = ids.buffers()[2].address - start
        self.values_at = [(column.buffers()[1].address - start, _width(column.type)) for column in values]
        """The places of event time and fields, and the bytes of each."""
        self._bools_at = [self.values_at[i][0] for i, column in enumerate(values) if pt.is_boolean(column.type)]
        self._end_at = self.offsets_at + _END.size
        metadata_end = max(0, self.offsets_at)
        self._size_at = payload.find(_BUFFER.pack(self.id_at - self.offsets_at, id_size), 0, metadata_end) + 8
        self._room = -(-id_size // 8) * 8
        mask = bytearray(b"\xff" * len(payload))
        for at, width in self._varying():
            mask[at : at + width] = bytes(width)
        self._mask = int.from_bytes(mask, "little")
        self._rest = int.from_bytes(payload, "little") & self._mask

    @classmethod
    def of(cls, record: bytes) -> Template | None:
        """The template that a record makes; None if it does not have one row, or anything else than numbers in it.

        :raises InvalidEntryError: if it cannot be decoded.
        """
        decoded = decode(record)
        batch = decoded.batch
        plain = all(pt.is_primitive(column.type) and column.buffers()[0] is None for column in batch.columns[1:])
        if batch.num_rows != 1 or not plain or batch.column(0).buffers()[0] is not None:
            return None
        template = cls(record, decoded)
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
            len(record) == self.size
            and int.from_bytes(record, "little") & self._mask == self._rest
            and 0 < self.id_size(record) <= self._room
            and _SIZE.unpack_from(record, self._size_at)[0] == self.id_size(record)
            and is_sealed(record)
        )

    def id_size(self, record: bytes) -> int:
        """The bytes of the id in a record that fits."""
        size: int = _END.unpack_from(record, self._end_at)[0]
        return size

    def is_plain(self, record: bytes) -> bool:
        """Whether the id in a record that fits is text, and each bool's byte, of which Arrow takes a bit, 0 or 1."""
        try:
            record[self.id_at : self.id_at + self.id_size(record)].decode()
        except UnicodeDecodeError:
            return False
        return all(record[at] <= 1 for at in self._bools_at)

    def batch(self, records: Sequence[bytes]) -> pa.RecordBatch:
        """The rows of records that fit. :raises InvalidEntryError: if an id is no UTF-8."""
        if len(records) == 1:
            return batch_in(records[0])
        count = len(records)
        rows = np.frombuffer(b"".join(records), np.uint8).reshape(count, self.size)
        columns = [pa.Array.from_buffers(pa.string(), count, self._ids(records))]
        for kind, (at, width) in zip(self.arrow_schema.types[1:], self.values_at, strict=True):
            if pt.is_boolean(kind):
                data = np.packbits(rows[:, at] & 1, bitorder="little")
            else:
                data = np.ascontiguousarray(rows[:, at : at + width])
            columns.append(pa.Array.from_buffers(kind, count, [None, pa.py_buffer(data)]))
        batch = pa.RecordBatch.from_arrays(columns, schema=self.arrow_schema)
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InvalidEntryError(f"a record's Arrow data cannot be decoded: {error}") from error
        return batch

    def _ids(self, records: Sequence[bytes]) -> list[pa.Buffer | None]:
        ids = [record[self.id_at : self.id_at + self.id_size(record)] for record in records]
        ends = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([len(entity_id) for entity_id in ids], out=ends[1:])
        return [None, pa.py_buffer(ends), pa.py_buffer(b"".join(ids))]


class _Forms:
    """The forms of a schema, by the bytes of the id."""

    __slots__ = ("_by_size", "_fields", "_pick", "_schema", "_types")

    def __init__(self, schema: Schema) -> None:
        self._schema = weakref.ref(schema)
        self._by_size: dict[int, _Form] = {}
        self._fields = fields_by_name(schema)
        self._pick = operator.itemgetter(*self._fields, *list(self._fields)[:1])  # of one name it would give no tuple
        types = [_EXACT_TYPES.get(field.dtype) for field in schema.fields]
        self._types = (*types, *types[:1])

    def of_size(self, id_bytes: int) -> _Form | None:
        """The form for ids of so many bytes; None if there are no such forms."""
        form, schema = self._by_size.get(id_bytes), self._schema()
        fits = schema is not None and id_bytes <= _LONGEST_ID_BYTES and all(map(_is_scalar_number, schema.fields))
        if form is None and schema is not None and fits:
            form = self._by_size[id_bytes] = _Form(schema, id_bytes)
        return form

    def filled(
        self, entity_id: str, values: Mapping[str, Any], event_time_ns: int | None, written_ns: int | None
    ) -> bytes | None:
        """The record of a row in which everything has exactly the type that it should have, and a form is known.

        None leaves the decision to the checks one by one. What they would refuse is refused here as well: a number out
        of range cannot be packed.
        """
        try:
            key = entity_id.encode()
            form = self._by_size.get(len(key))
            if form is None or values.keys() != self._fields.keys():
                return None
            given = self._pick(values)
            if tuple(map(type, given)) != self._types or type(entity_id) is not str:
                return None
            now = time.time_ns() if event_time_ns is None or written_ns is None else 0
            if event_time_ns is None:
                event_time_ns = now
            elif type(event_time_ns) is not int:
                return None
            return form.fill(key, event_time_ns, given[:-1], now if written_ns is None else written_ns)
        except (AttributeError, UnicodeEncodeError, OverflowError, struct.error):
            return None


class _Form:
    """A record of a schema's row with an id of so many bytes, to be filled in: all that changes stands at its end."""

    __slots__ = ("_head", "_meta", "_pack", "_rows")

    def __init__(self, schema: Schema, id_bytes: int) -> None:
        zeros = [False if field.dtype is dtype.bool else 0 for field in schema.fields]
        record = encode(Kind.upsert, schema, rows_batch(schema, [("x" * id_bytes, 0, *zeros)]), written_ns=0)
        template = _template_of(record)
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
        """The record of a row, whose id is given as UTF-8.

        :raises OverflowError, struct.error: for a number that its field cannot hold.
        """
        body = self._pack(self._meta, key, event_time_ns, *values)
        head = b"%b%b%b" % (self._head, written_ns.to_bytes(8, "little", signed=True), self._rows)
        return b"%b%b%b" % (head, zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little"), body)


def _is_scalar_number(field: FeatureField) -> bool:
    return field.shape == () and field.dtype.is_numeric


def _width(kind: pa.DataType) -> int:
    return 1 if pt.is_boolean(kind) else kind.bit_width // 8


_forms: WeakKeyDictionary[Schema, _Forms] = WeakKeyDictionary()
_templates: dict[tuple[int, bytes, bytes], Template | None] = {}
