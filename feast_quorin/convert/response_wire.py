"""Feast's protobuf response in the wire format, encoded a column at a time.

Appending thousands of small messages one by one costs more than parsing the bytes of all of them. All numbers of a
column have one width, even integers, because a varint may be padded to ten bytes: a column is a matrix that NumPy
fills. Protobuf parses the padded bytes into the same messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from struct import pack
from typing import Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Cells = np.ndarray[Any, Any]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_INT_BYTES, _NANOS_BYTES = 10, 5
_SECOND_NS = 1_000_000_000
_WORD = 2**64 - 1
_FIELDS = {field.name: field.number for field in Value.DESCRIPTOR.fields}
_VECTOR = {field.name: field.number for field in GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields}
_TIME = {field.name: field.number for field in Timestamp.DESCRIPTOR.fields}
_ITEMS = 1
"""The number of the field ``val`` in every list message."""


def vector(values: bytes, row: bytes) -> bytes:
    """One feature's ``FeatureVector`` in the response: its values, and the :func:`row_states` of its view."""
    return _RESULT + varint(len(values) + len(row)) + values + row


def row_states(statuses: Sequence[int] | bytes, times_ns: Cells | None) -> bytes:
    """Statuses and event times (nanoseconds, 0 for none) of rows; empty timestamps if ``times_ns`` is None."""
    states = bytes(statuses)
    head = _STATUS + varint(len(states)) + states
    if times_ns is None:
        return head + (_STAMP + b"\0") * len(states)
    seconds, nanos = np.divmod(times_ns, _SECOND_NS)
    cells = np.empty((len(states), 2 + _INT_BYTES + _NANOS_BYTES), np.uint8)
    cells[:, 0], cells[:, 1 : 1 + _INT_BYTES] = _TIME["seconds"] << 3 | VARINT, _varints(seconds, _INT_BYTES)
    cells[:, 1 + _INT_BYTES], cells[:, -_NANOS_BYTES:] = _TIME["nanos"] << 3 | VARINT, _varints(nanos, _NANOS_BYTES)
    has_time = times_ns != 0
    return head + _messages(_STAMP, b"", cells, None if has_time.all() else has_time)


def row_state(status: int, time_ns: int) -> bytes:
    """:func:`row_states` for one row."""
    seconds, nanos = divmod(time_ns, _SECOND_NS)
    stamp = tag(_TIME["seconds"], VARINT) + varint(seconds & _WORD) + tag(_TIME["nanos"], VARINT) + varint(nanos)
    return _STATUS + bytes((1, status)) + _STAMP + (varint(len(stamp)) + stamp if time_ns else b"\0")


def nulls(count: int) -> bytes:
    """Values that are all null."""
    return (_VALUE + b"\0") * count


def numbers(kind: str, values: Cells, valid: Mask | None) -> bytes:
    """Numbers or booleans as values, null where ``valid`` is false. None means that all are valid."""
    if values.dtype.kind == "f":
        wire_type = FIXED32 if values.dtype.itemsize == np.dtype(np.float32).itemsize else FIXED64
        cells = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.dtype.itemsize)
    else:
        wire_type, cells = VARINT, _integers(values)
    return _messages(_VALUE, tag(_FIELDS[kind], wire_type), cells, valid)


def number(kind: str, code: str, value: Any) -> bytes:
    """One number or boolean as a value. ``code`` is the format character of its type in :mod:`struct`."""
    if code in "fd":
        data = tag(_FIELDS[kind], FIXED32 if code == "f" else FIXED64) + pack("<" + code, value)
    else:
        data = tag(_FIELDS[kind], VARINT) + varint(int(value) & _WORD)
    return _VALUE + varint(len(data)) + data


def texts(kind: str, values: Iterable[bytes | None]) -> bytes:
    """Strings (in UTF-8) or bytes as values."""
    head = tag(_FIELDS[kind], BYTES)
    return _joined(None if data is None else head + varint(len(data)) + data for data in values)


def number_lists(kind: str, array: pa.ListArray) -> bytes:
    """Lists of numbers or booleans as values."""
    items = array.values.to_numpy(zero_copy_only=False)
    cells = items.view(np.uint8).reshape(len(items), items.itemsize) if items.dtype.kind == "f" else _integers(items)
    width, data = cells.shape[1], memoryview(cells.tobytes())
    head, inner = tag(_FIELDS[kind], BYTES), tag(_ITEMS, BYTES)

    def lists() -> Iterable[bytes | None]:
        for (start, stop), is_valid in zip(pairwise(array.offsets.to_pylist()), _validity(array), strict=True):
            if is_valid:
                packed = data[start * width : stop * width]
                message = inner + varint(len(packed)) + packed if packed else b""
                yield head + varint(len(message)) + message
            else:
                yield None

    return _joined(lists())


def text_lists(kind: str, array: pa.ListArray) -> bytes:
    """Lists of strings or bytes as values."""
    head, inner = tag(_FIELDS[kind], BYTES), tag(_ITEMS, BYTES)
    binary = array.cast(pa.list_(pa.binary()))

    def lists() -> Iterable[bytes | None]:
        for items in binary.to_pylist():
            if items is None:
                yield None
            else:
                message = b"".join([inner + varint(len(item)) + item for item in items])
                yield head + varint(len(message)) + message

    return _joined(lists())


def messages(serialized: Iterable[bytes | None]) -> bytes:
    """Values that are already serialized."""
    return _joined(serialized)


def varint(value: int) -> bytes:
    """A non-negative number as the shortest varint."""
    if value < 0x80:
        return bytes((value,))
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


@cache
def tag(field: int, wire_type: int) -> bytes:
    """The tag that precedes a field."""
    return varint(field << 3 | wire_type)


_VALUE = tag(_VECTOR["values"], BYTES)
_STATUS = tag(_VECTOR["statuses"], BYTES)
_STAMP = tag(_VECTOR["event_timestamps"], BYTES)
_RESULT = tag(GetOnlineFeaturesResponse.DESCRIPTOR.fields_by_name["results"].number, BYTES)


def _joined(values: Iterable[bytes | None]) -> bytes:
    null = _VALUE + b"\0"
    return b"".join([null if value is None else _VALUE + varint(len(value)) + value for value in values])


def _messages(head: bytes, start: bytes, cells: Cells, valid: Mask | None) -> bytes:
    """One message a row, after ``head``: ``start`` and the row's cells, less than 128 bytes; empty if not valid."""
    count, width = cells.shape
    prefix = head + varint(len(start) + width)
    begin = len(prefix) + len(start)
    rows = np.empty((count, begin + width), np.uint8)
    rows[:, :begin] = np.frombuffer(prefix + start, np.uint8)
    rows[:, begin:] = cells
    if valid is None:
        return rows.tobytes()
    rows[~valid, len(prefix) - 1] = 0
    kept = np.ones(rows.shape, np.bool_)
    kept[~valid, len(prefix) :] = False
    return rows[kept].tobytes()


def _integers(values: Cells) -> Cells:
    return values.view(np.uint8).reshape(-1, 1) if values.dtype == np.bool_ else _varints(values, _INT_BYTES)


def _varints(values: Cells, width: int) -> Cells:
    """Integers as varints of ``width`` bytes each, shape ``(N, width)``."""
    shifts = np.arange(0, 7 * width, 7, dtype=np.uint64)
    words = values.astype(np.int64).view(np.uint64)
    cells = (words[:, np.newaxis] >> shifts).astype(np.uint8) & np.uint8(0x7F)
    cells[:, :-1] |= 0x80
    return cells


def _validity(array: pa.Array) -> Iterable[bool]:
    if not array.null_count:
        return [True] * len(array)
    valid: list[bool] = array.is_valid().to_numpy(zero_copy_only=False).tolist()
    return valid
