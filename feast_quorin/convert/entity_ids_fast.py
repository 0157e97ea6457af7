"""Feast's entity keys, read from the bytes that stand for them on the wire, a join key of all of them at a time.

Python's protobuf makes an object of every value that is touched inside a message, which costs more than serializing
the whole key. Keys of one shape differ only in their values and their lengths, so NumPy walks along all of them at
once. The format: https://protobuf.dev/programming-guides/encoding/
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
    """Of each join key its values in all the ``EntityKey`` protos, int64 or string.

    None where that cannot be had: all keys must have the same join keys, and for each of them integers of one type, or
    strings.
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
    """A place in each of many messages of one shape. What is read there moves all the places on."""

    def __init__(self, messages: list[bytes]) -> None:
        self.ends = np.cumsum(np.fromiter(map(len, messages), np.int64, len(messages)))
        self.at = np.concatenate(([0], self.ends[:-1]))
        # Another shape than expected shows when something too long has been read, which may be past the last message.
        self._joined = b"".join([*messages, bytes(_VARINT_BYTES)])
        self._bytes = np.frombuffer(self._joined, np.uint8)

    def skips(self, head: bytes) -> bool:
        """Whether all go on with these bytes, which are passed then."""
        if int((self.ends - self.at).min()) < len(head):
            return False
        found = self._bytes[self.at[:, np.newaxis] + np.arange(len(head))]
        self.at = self.at + len(head)
        return bool((found == np.frombuffer(head, np.uint8)).all())

    def value(self) -> pa.Array | None:
        """The next values of the keys; None unless all are integers of one type, or all strings."""
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
        """The byte that all have here."""
        found = self._bytes[self.at]
        self.at = self.at + 1
        return int(found[0]) if (found == found[0]).all() else None

    def _varints(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        numbers = np.zeros(len(self.at), np.uint64)
        going = np.arange(len(self.at))
        for place in range(_VARINT_BYTES):
            found = self._bytes[self.at[going]]
            numbers[going] |= (found & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * place)
            self.at[going] += 1
            going = going[found >= 0x80]
            if not len(going):
                break
        return numbers

    def _texts(self) -> pa.Array:
        sizes = self._varints().astype(np.int64)
        starts, self.at = self.at, self.at + sizes
        places = zip(starts.tolist(), self.at.tolist(), strict=True)
        return pa.array([self._joined[start:stop] for start, stop in places], pa.string())
