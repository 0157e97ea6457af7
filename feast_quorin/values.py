"""Values: Feast's ``Value`` protos as Arrow columns of the engine, and back, a column at a time.

Numbers, booleans, strings, bytes, timestamps and lists of them stand in the row as what they are. Every other type
(maps, sets, JSON, UUIDs, decimals, nested lists, ...) keeps its serialized ``Value`` in a bytes field. A null is
Arrow's null and reads back as an empty ``Value``, as Feast has it; an empty list stays an empty list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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

_NULL_KINDS = {None, "null_val"}

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
    """How values of one Feast type are kept. ``kind`` is the member of ``Value`` that it uses, '' for any."""

    dtype: dtype
    kind: str = ""

    @property
    def is_comparable(self) -> bool:
        """Whether the kept values stand in an order, as scalars do."""
        return False

    def field(self, name: str) -> FeatureField:
        """The engine's field for values of this type."""
        return FeatureField(name, self.dtype)

    @abstractmethod
    def to_arrow(self, values: Sequence[Any]) -> pa.Array:
        """``Value`` protos as an Arrow array of the field's type.

        :raises InvalidRowError: for a value of another type; the text names both types and the value.
        """

    @abstractmethod
    def to_protos(self, column: pa.Array) -> list[Any]:
        """An Arrow array as ``Value`` protos, equal to those that were written."""

    def append_to(self, values: Any, column: pa.Array) -> None:
        """Append an Arrow array to a repeated field of ``Value``: as :meth:`to_protos`, but quicker."""
        values.extend(self.to_protos(column))

    def _nulls(self, values: Sequence[Any]) -> list[bool] | None:
        """Which values are null, None if none is."""
        kinds = [value.WhichOneof("val") for value in values]
        others = set(kinds) - {self.kind}
        if not others:
            return None
        for kind in others - _NULL_KINDS:
            raise InvalidRowError(f"expected {self.kind}, got {kind}: {str(values[kinds.index(kind)]).strip()[:100]}")
        return [kind in _NULL_KINDS for kind in kinds]


class ScalarCodec(Codec):
    """One number, boolean, string or bytes."""

    @property
    def is_comparable(self) -> bool:  # noqa: D102 - the base class says it
        return True

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:  # noqa: D102 - the base class says it
        nulls = self._nulls(values)
        plain = list(map(attrgetter(self.kind), values))
        if self.dtype.is_numeric:
            return pa.array(np.array(plain, self.dtype.numpy), mask=None if nulls is None else np.array(nulls))
        if nulls is not None:
            plain = [None if null else value for null, value in zip(nulls, plain, strict=True)]
        return pa.array(plain, _ARROW[self.dtype])

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
    """A list of any length, empty ones included; ``message`` is the proto that wraps its elements."""

    message: Any = None

    def field(self, name: str) -> FeatureField:  # noqa: D102
        return FeatureField(name, self.dtype, (None,))

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:  # noqa: D102
        nulls = self._nulls(values)
        lists = [getattr(value, self.kind).val for value in values]
        offsets = np.zeros(len(lists) + 1, np.int32)
        np.cumsum(list(map(len, lists)), out=offsets[1:])
        flat = chain.from_iterable(lists)
        if self.dtype.is_numeric:
            elements = pa.array(np.fromiter(flat, self.dtype.numpy, int(offsets[-1])))
        else:
            elements = pa.array(list(flat), _ARROW[self.dtype])
        return pa.ListArray.from_arrays(pa.array(offsets), elements, mask=None if nulls is None else pa.array(nulls))

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


class ProtoCodec(Codec):
    """Any other type: the serialized ``Value`` itself."""

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:  # noqa: D102
        kept = [None if value.WhichOneof("val") in _NULL_KINDS else value.SerializeToString() for value in values]
        return pa.array(kept, pa.binary())

    def to_protos(self, column: pa.Array) -> list[Any]:  # noqa: D102
        return [Value() if data is None else Value.FromString(data) for data in column.to_pylist()]


_CODECS: dict[ValueType, Codec] = {
    **{value_type: ScalarCodec(code, kind) for value_type, (code, kind) in _SCALARS.items()},
    **{value_type: ListCodec(code, kind, message) for value_type, (code, kind, message) in _LISTS.items()},
}
_PROTO_CODEC = ProtoCodec(dtype.bytes)


def codec_for(value_type: ValueType) -> Codec:
    """The codec of a Feast type; every type has one."""
    return _CODECS.get(value_type, _PROTO_CODEC)
