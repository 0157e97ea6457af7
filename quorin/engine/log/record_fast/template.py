"""Recognize records that differ in id, event time and values only, and decode them together."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from quorin.engine.log.record import (
    BODY_OFFSET,
    CRC_OFFSET,
    ROWS_OFFSET,
    WRITTEN_OFFSET,
    Record,
    batch_in,
    decode,
    is_of_load,
    is_sealed,
    load_of,
    peek,
)
from quorin.engine.rows.column import text_lengths
from quorin.errors import InvalidEntryError

if TYPE_CHECKING:
    from collections.abc import Sequence

_END, _SIZE, _BUFFER = struct.Struct("<i"), struct.Struct("<q"), struct.Struct("<qq")
_MAX_TEMPLATES = 1024


def likeness(payload: bytes) -> tuple[int, bytes, bytes]:
    """A key that is the same for all records that :func:`decode_alike` takes together. Other records may share it."""
    return len(payload), payload[:WRITTEN_OFFSET], payload[ROWS_OFFSET:CRC_OFFSET]


def template_of(payloads: Sequence[bytes]) -> Template | None:
    """The template that all of these records fit: they are undamaged, have one row each, and differ in id, event time
    and values only. None if there is no such template.
    """
    try:
        template = cached_template(payloads[0])
    except InvalidEntryError:
        return None
    return template if template is not None and all(map(template.fits, payloads)) else None


def decode_alike(payloads: Sequence[bytes]) -> Record | None:
    """Records of one row each as one record, with their rows in this order and ``written_ns`` of the last.

    None if no template fits them all, or an id is not UTF-8: then decode them one by one with
    :func:`quorin.engine.log.record.decode`.
    """
    template = template_of(payloads)
    if template is None:
        return None
    try:
        batch = template.batch(payloads)
    except InvalidEntryError:
        return None
    last = peek(payloads[-1])
    load = load_of(payloads[-1])[0] if is_of_load(payloads[-1]) else 0
    return Record(last.kind, last.schema_name, last.fingerprint, last.written_ns, len(payloads), batch, load)


def cached_template(record: bytes) -> Template | None:
    """The template of a record, made once for all records that are alike.

    :raises InvalidEntryError: if the record cannot be decoded.
    """
    key = likeness(record)
    if key not in _templates:
        # A damaged record raises here, and caches nothing: the next one with this key may be undamaged.
        template = Template.of(record)
        if len(_templates) >= _MAX_TEMPLATES:
            _templates.clear()
        _templates[key] = template
    return _templates.get(key)


class Template:
    """A record of one row of numbers, and the offsets in it of id, event time and values.

    Arrow pads an id to a multiple of 8 bytes. So records whose ids differ a little in length have the same layout. The
    length is in two places: the second of the ids' offsets, and the buffer's size in Arrow's metadata.
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
        """Offset and size in bytes of the event time and each field."""
        self._bools_at = [self.values_at[i][0] for i, column in enumerate(values) if pt.is_boolean(column.type)]
        self._end_at = self.offsets_at + _END.size
        metadata_end = max(0, self.offsets_at)
        self._size_at = payload.find(_BUFFER.pack(self.id_at - self.offsets_at, id_size), 0, metadata_end) + 8
        self._room = -(-id_size // 8) * 8
        mask = bytearray(b"\xff" * len(payload))
        for at, width in self.varying():
            mask[at : at + width] = bytes(width)
        self._mask = int.from_bytes(mask, "little")
        self._rest = int.from_bytes(payload, "little") & self._mask

    @classmethod
    def of(cls, record: bytes) -> Template | None:
        """The template of a record; None if it does not have exactly one row, of numbers without nulls.

        :raises InvalidEntryError: if the record cannot be decoded.
        """
        decoded = decode(record)
        batch = decoded.batch
        is_fixed_size = all(
            pt.is_primitive(column.type) and column.buffers()[0] is None for column in batch.columns[1:]
        )
        if batch.num_rows != 1 or not is_fixed_size or batch.column(0).buffers()[0] is not None:
            return None
        template = cls(record, decoded)
        # A column that Arrow had to decompress is not a view of the record.
        is_view = all(BODY_OFFSET <= at <= len(record) - width for at, width in template.varying()[2:])
        return template if is_view and template.fits(record) else None

    def varying(self) -> list[tuple[int, int]]:
        """Offset and size in bytes of all that differs between records of the same layout."""
        in_head = [(WRITTEN_OFFSET, 8), (CRC_OFFSET, 4)]
        return [*in_head, (self._size_at, 8), (self._end_at, _END.size), (self.id_at, self._room), *self.values_at]

    def fits(self, record: bytes) -> bool:
        """Whether a record is undamaged, and equals this one except in id, times and values."""
        return (
            len(record) == self.size
            and int.from_bytes(record, "little") & self._mask == self._rest
            and 0 < self.id_size(record) <= self._room
            and _SIZE.unpack_from(record, self._size_at)[0] == self.id_size(record)
            and is_sealed(record)
        )

    def id_size(self, record: bytes) -> int:
        """The size in bytes of the id in a record that fits."""
        size: int = _END.unpack_from(record, self._end_at)[0]
        return size

    def is_valid(self, record: bytes) -> bool:
        """Whether the id in a record that fits is UTF-8, and each bool's byte is 0 or 1; Arrow reads its first bit."""
        try:
            record[self.id_at : self.id_at + self.id_size(record)].decode()
        except UnicodeDecodeError:
            return False
        return all(record[at] <= 1 for at in self._bools_at)

    def batch(self, records: Sequence[bytes]) -> pa.RecordBatch:
        """The rows of records that fit. :raises InvalidEntryError: if an id is not UTF-8."""
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


def _width(kind: pa.DataType) -> int:
    return 1 if pt.is_boolean(kind) else kind.bit_width // 8


_templates: dict[tuple[int, bytes, bytes], Template | None] = {}
