"""Values: Feast's ``Value`` protos as Arrow columns of the engine, and back, a column at a time.

Numbers, booleans, strings, bytes, timestamps and lists of them are stored in fields of these types. A value of any
other type (maps, sets, JSON, UUIDs, decimals, nested lists, ...) is stored as a serialized ``Value`` in a bytes field.
A null is Arrow's null and reads as an empty ``Value``, as in Feast; an empty list stays an empty list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types import Value_pb2
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from quorin.errors import InvalidRowError
from quorin.schema import FeatureField, dtype

Nulls = np.ndarray[Any, np.dtype[np.bool_]]

_NULL_KINDS = {None, "null_val"}
_FLOATS = {dtype.float32, dtype.float64}

_SCALARS = {
    ValueType.FLOAT: (dtype.float32, "float_val"),
    ValueType.DOUBLE: (dtype.float64, "double_val"),
    ValueType.INT32: (dtype.int32, "int32_val"),
    ValueType.INT64: (dtype.int64, "int64_val"),
    ValueType.BOOL: (dtype.bool, "bool_val"),
    ValueType.STRING: (dtype.string, "string_val"),
    ValueType.BYTES: (dtype.bytes, "bytes_val"),
    ValueType.PDF_BYTES: (dtype.bytes, "bytes_val"),
    ValueType.IMAGE_BYTES: (dtype.bytes, "bytes_val"),
    ValueType.UNIX_TIMESTAMP: (dtype.int64, "unix_timestamp_val"),
}
_LISTS = {
    ValueType.FLOAT_LIST: (dtype.float32, "float_list_val", Value_pb2.FloatList),
    ValueType.DOUBLE_LIST: (dtype.float64, "double_list_val", Value_pb2.DoubleList),
    ValueType.INT32_LIST: (dtype.int32, "int32_list_val", Value_pb2.Int32List),
    ValueType.INT64_LIST: (dtype.int64, "int64_list_val", Value_pb2.Int64List),
    ValueType.BOOL_LIST: (dtype.bool, "bool_list_val", Value_pb2.BoolList),
    ValueType.STRING_LIST: (dtype.string, "string_list_val", Value_pb2.StringList),
    ValueType.BYTES_LIST: (dtype.bytes, "bytes_list_val", Value_pb2.BytesList),
    ValueType.UNIX_TIMESTAMP_LIST: (dtype.int64, "unix_timestamp_list_val", Value_pb2.Int64List),
}
_ARROW = {
    dtype.float32: pa.float32(),
    dtype.float64: pa.float64(),
    dtype.int32: pa.int32(),
    dtype.int64: pa.int64(),
    dtype.bool: pa.bool_(),
    dtype.string: pa.string(),
    dtype.bytes: pa.binary(),
}


@dataclass(frozen=True)
class Codec(ABC):
    """How values of one Feast type are stored. ``kind`` is the member of ``Value`` that has them, '' for any."""

    dtype: dtype
    kind: str = ""

    @property
    def is_comparable(self) -> bool:
        """Whether stored values can be compared, as scalars can."""
        return False

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of a column of stored values."""
        return _ARROW[self.dtype]

    def field(self, name: str) -> FeatureField:
        """The engine's field for values of this type."""
        return FeatureField(name, self.dtype)

    @abstractmethod
    def to_arrow(self, values: Sequence[Any]) -> pa.Array:
        """``Value`` protos as an Arrow array of the field's type.

        :raises InvalidRowError: for a value of another type; the text names both types and the value.
        """

    def to_python(self, value: Any) -> Any:
        """One ``Value`` proto as a Python value for the engine; None for a null.

        :raises InvalidRowError: as :meth:`to_arrow`.
        """
        kind = value.WhichOneof("val")
        if kind in _NULL_KINDS:
            return None
        if self.kind not in ("", kind):
            raise InvalidRowError(f"expected {self.kind}, got {kind}: {str(value).strip()[:100]}")
        return self._content(value)

    @abstractmethod
    def _content(self, value: Any) -> Any:
        """The content of a proto of this codec's kind."""

    @abstractmethod
    def to_protos(self, column: pa.Array) -> list[Any]:
        """An Arrow array as ``Value`` protos, equal to those that were written."""

    def append_to(self, values: Any, column: pa.Array) -> None:
        """Append an Arrow array to a repeated field of ``Value``; faster than :meth:`to_protos`."""
        values.extend(self.to_protos(column))

    def _nulls(self, values: Sequence[Any], empty: Iterable[int]) -> Nulls | None:
        """Whether each value is null; None if none is. ``empty`` has the indexes of values whose member of this kind
        reads as 0, false or empty: only these can be null or of another kind.
        """
        nulls: Nulls | None = None
        for index in empty:
            kind = values[index].WhichOneof("val")
            if kind in _NULL_KINDS:
                if nulls is None:
                    nulls = np.zeros(len(values), np.bool_)
                nulls[index] = True
            elif kind != self.kind:
                raise InvalidRowError(f"expected {self.kind}, got {kind}: {str(values[index]).strip()[:100]}")
        return nulls


class ScalarCodec(Codec):
    """One number, boolean, string or bytes."""

    @property
    def is_comparable(self) -> bool:  # noqa: D102 - the base class says it
        return True

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:  # noqa: D102 - the base class says it
        members = map(attrgetter(self.kind), values)
        if self.dtype.is_numeric:
            numbers = np.fromiter(members, self.dtype.numpy, len(values))
            return pa.array(numbers, mask=self._nulls(values, np.flatnonzero(numbers == 0).tolist()))
        texts: list[Any] = list(members)
        nulls = self._nulls(values, [index for index, text in enumerate(texts) if not text])
        if nulls is not None:
            texts = [None if null else text for null, text in zip(nulls.tolist(), texts, strict=True)]
        return pa.array(texts, _ARROW[self.dtype])

    def _content(self, value: Any) -> Any:
        return getattr(value, self.kind)

    def to_protos(self, column: pa.Array) -> list[Any]:  # noqa: D102
        return [Value() if value is None else Value(**{self.kind: value}) for value in column.to_pylist()]

    def append_to(self, values: Any, column: pa.Array) -> None:  # noqa: D102
        add, kind = values.add, self.kind
        for value in column.to_pylist():
            if value is None:
                add()
            else:
                setattr(add(), kind, value)


@dataclass(frozen=True)
class ListCodec(Codec):
    """A list of any length, also an empty one. ``message`` is the proto that wraps its elements."""

    message: Any = None

    @property
    def arrow_type(self) -> pa.DataType:  # noqa: D102
        return pa.list_(_ARROW[self.dtype])

    def field(self, name: str) -> FeatureField:  # noqa: D102
        return FeatureField(name, self.dtype, (None,))

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:  # noqa: D102
        messages = list(map(attrgetter(self.kind), values))
        lists = [message.val for message in messages]
        sizes = np.fromiter(map(len, lists), np.int64, len(lists))
        nulls = self._nulls(values, np.flatnonzero(sizes == 0).tolist())
        offsets = np.zeros(len(lists) + 1, np.int32)
        np.cumsum(sizes, out=offsets[1:])
        if self.dtype in _FLOATS:
            elements = pa.array(_packed_floats(messages, sizes.tolist(), self.dtype))
        elif self.dtype.is_numeric:
            elements = pa.array(np.fromiter(chain.from_iterable(lists), self.dtype.numpy, int(offsets[-1])))
        else:
            elements = pa.array(list(chain.from_iterable(lists)), _ARROW[self.dtype])
        return pa.ListArray.from_arrays(pa.array(offsets), elements, mask=None if nulls is None else pa.array(nulls))

    def _content(self, value: Any) -> Any:
        return list(getattr(value, self.kind).val)

    def to_protos(self, column: pa.Array) -> list[Any]:  # noqa: D102
        kind, message = self.kind, self.message
        return [Value() if value is None else Value(**{kind: message(val=value)}) for value in column.to_pylist()]

    def append_to(self, values: Any, column: pa.Array) -> None:  # noqa: D102
        add, kind = values.add, self.kind
        for elements in column.to_pylist():
            value = add()
            if elements is not None:
                wrapped = getattr(value, kind)
                wrapped.SetInParent()
                wrapped.val.extend(elements)


def _packed_floats(messages: Sequence[Any], sizes: Sequence[int], kind: dtype) -> np.ndarray[Any, Any]:
    """The concatenated elements of ``FloatList`` or ``DoubleList`` protos.

    The only field of such a list is packed, so the serialized list ends with its elements, little-endian and of fixed
    width. Reading them there is many times as fast as iterating over them in Python.
    """
    width = kind.item_size
    parts = [
        message.SerializeToString()[-width * size :] for message, size in zip(messages, sizes, strict=True) if size
    ]
    return np.frombuffer(b"".join(parts), kind.numpy)


class ProtoCodec(Codec):
    """Any other type: the serialized ``Value`` itself."""

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:  # noqa: D102
        data = [None if value.WhichOneof("val") in _NULL_KINDS else value.SerializeToString() for value in values]
        return pa.array(data, pa.binary())

    def _content(self, value: Any) -> Any:
        return value.SerializeToString()

    def to_protos(self, column: pa.Array) -> list[Any]:  # noqa: D102
        return [Value() if data is None else Value.FromString(data) for data in column.to_pylist()]


_CODECS: dict[ValueType, Codec] = {
    **{value_type: ScalarCodec(code, kind) for value_type, (code, kind) in _SCALARS.items()},
    **{value_type: ListCodec(code, kind, message) for value_type, (code, kind, message) in _LISTS.items()},
}
_TYPES_OF_KINDS = {codec.kind: value_type for value_type, codec in reversed(_CODECS.items())}
_PROTO_CODEC = ProtoCodec(dtype.bytes)
_NUMBER_LISTS = {
    codec.kind: codec
    for value_type, codec in _CODECS.items()
    if value_type in _LISTS and codec.dtype.is_numeric and value_type is not ValueType.UNIX_TIMESTAMP_LIST
}


def codec_for(value_type: ValueType) -> Codec:
    """The codec of a Feast type; every type has one."""
    return _CODECS.get(value_type, _PROTO_CODEC)


def value_column(values: Sequence[Any]) -> tuple[ValueType, pa.Array]:
    """``Value`` protos of unknown type as an Arrow array, and the type whose codec decodes it: ``UNKNOWN``, as
    serialized protos, unless all are scalars or lists of one kind.
    """
    kinds = {value.WhichOneof("val") for value in values} - _NULL_KINDS
    value_type = _TYPES_OF_KINDS.get(kinds.pop(), ValueType.UNKNOWN) if len(kinds) == 1 else ValueType.UNKNOWN
    return value_type, codec_for(value_type).to_arrow(values)


def number_lists(values: Sequence[Any], value_type: ValueType | None) -> pa.ListArray | None:
    """``Value`` protos with lists of numbers or booleans as an Arrow array of the same type; None for other protos.

    ``value_type`` is their Feast type, if known. It decides if all of them are null.
    """
    kinds = {value.WhichOneof("val") for value in values} - _NULL_KINDS
    if not kinds and value_type is not None:
        kinds = {codec_for(value_type).kind}
    codec = _NUMBER_LISTS.get(kinds.pop()) if len(kinds) == 1 else None
    return None if codec is None else codec.to_arrow(values)
