"""Feast's entity keys, decoded from their serialized bytes, one join key of all of them at a time.

Python's protobuf creates an object for every value that is read from a message, which costs more than serializing the
whole key. Keys of one shape differ only in their values and lengths, so NumPy decodes all of them together. The format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feast_quorin.convert.response_wire import BYTES, VARINT, tag

INTEGERS = ("int32_val", "int64_val", "unix_timestamp_val")

_VARINT_BYTES = 10
_FIELDS = {field.name: field.number for field in Value.DESCRIPTOR.fields}
(_ENTITY_VALUE,) = tag(EntityKey.ENTITY_VALUES_FIELD_NUMBER, BYTES)
(_TEXT,) = tag(_FIELDS["string_val"], BYTES)
_NUMBERS = [tag(_FIELDS[kind], VARINT)[0] for kind in INTEGERS]


def columns_of_keys(keys: Sequence[Any]) -> dict[str, pa.Array] | None:
    """A column of values, int64 or string, for each join key of ``EntityKey`` protos.

    None unless all keys have the same join keys, and each join key has integers of one type or strings.
    """
    names = list(keys[0].join_keys)
    if not names or len(set(names)) < len(names):
        return None
    walk = _Walk([key.SerializeToString() for key in keys])
    if not walk.skips(EntityKey(join_keys=names).SerializeToString()):
        return None
    columns = {}
    for name in names:
        column = walk.value()
        if column is None:
            return None
        columns[name] = column
    return columns if np.array_equal(walk.at, walk.ends) else None


class _Walk:
    """An offset in each of many messages of one shape. Reading advances all offsets."""

    def __init__(self, messages: list[bytes]) -> None:
        self.ends = np.cumsum(np.fromiter(map(len, messages), np.int64, len(messages)))
        self.at = np.concatenate(([0], self.ends[:-1]))
        # A wrong shape is noticed only after reading too much, which may be past the last message.
        self._joined = b"".join([*messages, bytes(_VARINT_BYTES)])
        self._bytes = np.frombuffer(self._joined, np.uint8)

    def skips(self, head: bytes) -> bool:
        """Whether all messages continue with these bytes; skips them."""
        if int((self.ends - self.at).min()) < len(head):
            return False
        data = self._bytes[self.at[:, np.newaxis] + np.arange(len(head))]
        self.at = self.at + len(head)
        return bool((data == np.frombuffer(head, np.uint8)).all())

    def value(self) -> pa.Array | None:
        """The next value of each key; None unless all are integers of one type, or all strings."""
        if self._common_byte() != _ENTITY_VALUE:
            return None
        sizes = self._varints()
        ends = self.at + sizes.astype(np.int64)
        if not sizes.all():
            return None
        kind = self._common_byte()
        if kind in _NUMBERS:
            column = pa.array(self._varints().view(np.int64))
        elif kind == _TEXT:
            column = self._texts()
        else:
            return None
        return column if np.array_equal(self.at, ends) else None

    def _common_byte(self) -> int | None:
        """The next byte, if it is the same in all messages; else None."""
        data = self._bytes[self.at]
        self.at = self.at + 1
        return int(data[0]) if (data == data[0]).all() else None

    def _varints(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        numbers = np.zeros(len(self.at), np.uint64)
        unfinished = np.arange(len(self.at))
        for index in range(_VARINT_BYTES):
            data = self._bytes[self.at[unfinished]]
            numbers[unfinished] |= (data & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * index)
            self.at[unfinished] += 1
            unfinished = unfinished[data >= 0x80]
            if not len(unfinished):
                break
        return numbers

    def _texts(self) -> pa.Array:
        sizes = self._varints().astype(np.int64)
        starts, self.at = self.at, self.at + sizes
        bounds = zip(starts.tolist(), self.at.tolist(), strict=True)
        return pa.array([self._joined[start:stop] for start, stop in bounds], pa.string())
