"""Columns of the engine as Python lists, arrays for frames, Arrow arrays and protobuf, equal to what Feast returns.

Feast converts every ``Value`` to a Python object and builds frames and tables from lists of these. So float32 becomes a
float64 column, integers with nulls become floats in a frame, and a column of nulls has no type. The decoders return the
same, without creating the objects if the result is certain without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import b64encode
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import NULL_TIMESTAMP_INT_VALUE, feast_value_type_to_python_type
from feast.value_type import ValueType

from feast_quorin import feast_private
from feast_quorin.convert import json_numbers
from feast_quorin.convert import response_wire as wire
from feast_quorin.convert.codecs import ListCodec, ScalarCodec, codec_for
from quorin.schema import dtype

if TYPE_CHECKING:
    from quorin.assembly import Columns, OneRow

_TIMESTAMP = pa.timestamp("s", "UTC")
_NO_TIME = int(NULL_TIMESTAMP_INT_VALUE)


class Decoder(ABC):
    """Converts values of one Feast type. ``index`` is the index of the field among those that were read."""

    is_float = False
    """Whether the values are floats, one an entity."""

    @abstractmethod
    def value(self, row: OneRow, index: int) -> Any:
        """The value of one entity. It must not be null."""

    @abstractmethod
    def values(self, columns: Columns, index: int) -> list[Any]:
        """Python values, None if null or not found."""

    def for_frame(self, columns: Columns, index: int) -> Any:
        """Values for a frame: an array of the dtype that pandas would infer, or a list."""
        return self.values(columns, index)

    def for_table(self, columns: Columns, index: int) -> Any:
        """Values for a table: an array of the type that Arrow would infer, or a list."""
        return self.values(columns, index)

    def for_tensor(self, columns: Columns, index: int, default: Any) -> Any:  # noqa: ARG002
        """Values for a tensor: a new array with ``default`` instead of nulls, or a list with None."""
        return self.values(columns, index)

    def lists(self, columns: Columns, index: int) -> pa.ListArray | None:  # noqa: ARG002
        """Lists of numbers or booleans as an array of the stored type; None for other types."""
        return None

    @abstractmethod
    def wire(self, columns: Columns, index: int) -> bytes:
        """The values as ``values`` of a ``FeatureVector`` on the wire."""

    def wire_one(self, row: OneRow, index: int) -> bytes:
        """:meth:`wire` for the value of one entity. It must not be null."""
        return self.wire(row.columns(), index)

    @abstractmethod
    def json(self, columns: Columns, index: int) -> Any:
        """The values as Feast's feature server writes them: an array or a list for orjson, None for nulls."""

    def json_one(self, row: OneRow, index: int) -> Any:
        """:meth:`json` for the value of one entity. It must not be null."""
        return self.json(row.columns(), index)[0]

    def arrow(self, columns: Columns, index: int) -> pa.Array:
        """The values in their stored type."""
        return columns.arrow(index)


class NumberDecoder(Decoder):
    """A number or boolean. float32 and int32 are widened, as a conversion by Python objects would."""

    def __init__(self, code: dtype, kind: str) -> None:
        self._kind = kind
        self._code = code.numpy.char
        self._wide: Any = np.float64 if code.numpy.kind == "f" else np.int64 if code.numpy.kind == "i" else np.bool_
        self.is_float = self._wide is np.float64

    def value(self, row: OneRow, index: int) -> Any:  # noqa: D102 - the base class says it
        return row.values[row.layout.slots[index]]

    def values(self, columns: Columns, index: int) -> list[Any]:  # noqa: D102
        values: list[Any] = columns.values(index).tolist()
        if not columns.complete:
            for row in np.flatnonzero(~columns.valid(index)).tolist():
                values[row] = None
        return values

    def for_frame(self, columns: Columns, index: int) -> Any:  # noqa: D102
        valid = None if columns.complete else columns.valid(index)
        if valid is None or valid.all():
            return columns.values(index).astype(self._wide)
        if self._wide is np.bool_ or not valid.any():
            return self.values(columns, index)
        floats = columns.values(index).astype(np.float64)
        floats[~valid] = np.nan
        return floats

    def for_table(self, columns: Columns, index: int) -> Any:  # noqa: D102
        valid = None if columns.complete else columns.valid(index)
        if valid is not None and not valid.any():
            return pa.nulls(len(valid))
        return pa.array(columns.values(index).astype(self._wide), mask=None if valid is None else ~valid)

    def for_tensor(self, columns: Columns, index: int, default: Any) -> Any:  # noqa: D102
        valid = None if columns.complete else columns.valid(index)
        if valid is None or valid.all():
            return columns.values(index).astype(self._wide)
        if self._wide is np.bool_ or type(default) is not float:
            return self.values(columns, index)
        floats = columns.values(index).astype(np.float64)
        floats[~valid] = default
        return floats

    def wire(self, columns: Columns, index: int) -> bytes:  # noqa: D102
        return wire.numbers(self._kind, columns.values(index), None if columns.complete else columns.valid(index))

    def wire_one(self, row: OneRow, index: int) -> bytes:  # noqa: D102
        return wire.number(self._kind, self._code, row.values[row.layout.slots[index]])

    def json(self, columns: Columns, index: int) -> Any:  # noqa: D102
        values = columns.values(index)
        numbers = json_numbers.of(values.astype(np.float64) if self.is_float else values)
        return json_numbers.with_nulls(numbers, None if columns.complete else columns.valid(index))

    def json_one(self, row: OneRow, index: int) -> Any:  # noqa: D102
        value = row.values[row.layout.slots[index]]
        return value if not self.is_float or isfinite(value) else json_numbers.NAMES[repr(value)]


class TimeDecoder(NumberDecoder):
    """Seconds since the epoch, as aware datetimes."""

    def __init__(self) -> None:
        super().__init__(dtype.int64, "unix_timestamp_val")

    def value(self, row: OneRow, index: int) -> Any:  # noqa: D102
        return _time(super().value(row, index))

    def values(self, columns: Columns, index: int) -> list[Any]:  # noqa: D102
        return [None if seconds is None else _time(seconds) for seconds in super().values(columns, index)]

    for_frame = for_table = values

    def for_tensor(self, columns: Columns, index: int, default: Any) -> Any:  # noqa: ARG002, D102
        return self.values(columns, index)

    def arrow(self, columns: Columns, index: int) -> pa.Array:  # noqa: D102
        return columns.arrow(index).cast(_TIMESTAMP)


class TextDecoder(Decoder):
    """A string, or bytes."""

    def __init__(self, is_text: bool, kind: str) -> None:
        self._is_text = is_text
        self._kind = kind

    def value(self, row: OneRow, index: int) -> Any:  # noqa: D102
        stored = row.stored(index).tobytes()
        return stored.decode() if self._is_text else stored

    def values(self, columns: Columns, index: int) -> list[Any]:  # noqa: D102
        return columns.arrow(index).to_pylist()

    def for_table(self, columns: Columns, index: int) -> Any:  # noqa: D102
        return _typed(columns.arrow(index))

    def wire(self, columns: Columns, index: int) -> bytes:  # noqa: D102
        array = columns.arrow(index)
        return wire.texts(self._kind, (array.cast(pa.binary()) if self._is_text else array).to_pylist())

    def wire_one(self, row: OneRow, index: int) -> bytes:  # noqa: D102
        return wire.texts(self._kind, [row.stored(index).tobytes()])

    def json(self, columns: Columns, index: int) -> Any:  # noqa: D102
        values = columns.arrow(index).to_pylist()
        return values if self._is_text else [None if value is None else _base64(value) for value in values]

    def json_one(self, row: OneRow, index: int) -> Any:  # noqa: D102
        value = self.value(row, index)
        return value if self._is_text else _base64(value)


class ListDecoder(Decoder):
    """A list of numbers or booleans."""

    def __init__(self, code: dtype, kind: str) -> None:
        self._kind = kind
        self._stored = code.numpy
        self._wide = {"f": pa.float64(), "i": pa.int64()}.get(code.numpy.kind, pa.bool_())

    def value(self, row: OneRow, index: int) -> Any:  # noqa: D102
        return row.stored(index).view(self._stored).tolist()

    def values(self, columns: Columns, index: int) -> list[Any]:  # noqa: D102
        lists: list[Any] = columns.lists(index)
        if not columns.complete:
            for row in np.flatnonzero(~columns.valid(index)).tolist():
                lists[row] = None
        return lists

    def for_frame(self, columns: Columns, index: int) -> Any:  # noqa: D102
        lists = self.values(columns, index)
        return np.fromiter(lists, object, len(lists))  # pandas would inspect every list

    def for_table(self, columns: Columns, index: int) -> Any:  # noqa: D102
        array = columns.arrow(index)
        if _is_empty(array):
            return self.values(columns, index)
        return array.cast(pa.list_(self._wide))

    def lists(self, columns: Columns, index: int) -> pa.ListArray | None:  # noqa: D102
        return columns.arrow(index)

    def wire(self, columns: Columns, index: int) -> bytes:  # noqa: D102
        return wire.number_lists(self._kind, columns.arrow(index))

    def json(self, columns: Columns, index: int) -> Any:  # noqa: D102
        return json_numbers.lists(columns.arrow(index))


class TimeListDecoder(ListDecoder):
    """A list of times."""

    def __init__(self) -> None:
        super().__init__(dtype.int64, "unix_timestamp_list_val")

    def value(self, row: OneRow, index: int) -> Any:  # noqa: D102
        return [_time(seconds) for seconds in super().value(row, index)]

    def values(self, columns: Columns, index: int) -> list[Any]:  # noqa: D102
        lists = super().values(columns, index)
        return [None if times is None else [_time(seconds) for seconds in times] for times in lists]

    for_table = values
    lists = Decoder.lists

    def arrow(self, columns: Columns, index: int) -> pa.Array:  # noqa: D102
        return columns.arrow(index).cast(pa.list_(_TIMESTAMP))


class TextListDecoder(Decoder):
    """A list of strings, or of bytes."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def value(self, row: OneRow, index: int) -> Any:  # noqa: D102
        return self.values(row.columns(), index)[0]

    def values(self, columns: Columns, index: int) -> list[Any]:  # noqa: D102
        return columns.arrow(index).to_pylist()

    def for_table(self, columns: Columns, index: int) -> Any:  # noqa: D102
        array = columns.arrow(index)
        return array.to_pylist() if _is_empty(array) else array

    def wire(self, columns: Columns, index: int) -> bytes:  # noqa: D102
        return wire.text_lists(self._kind, columns.arrow(index))

    def json(self, columns: Columns, index: int) -> Any:  # noqa: D102
        lists = self.values(columns, index)
        if self._kind == "string_list_val":
            return lists
        return [None if values is None else [*map(_base64, values)] for values in lists]


class ProtoDecoder(Decoder):
    """A serialized ``Value`` of any other type, decoded by Feast's own function."""

    def __init__(self, value_type: ValueType) -> None:
        self._type = value_type

    def value(self, row: OneRow, index: int) -> Any:  # noqa: D102
        return self._decode(row.stored(index).tobytes())

    def values(self, columns: Columns, index: int) -> list[Any]:  # noqa: D102
        return [None if data is None else self._decode(data) for data in columns.arrow(index).to_pylist()]

    def wire(self, columns: Columns, index: int) -> bytes:  # noqa: D102
        return wire.messages(columns.arrow(index).to_pylist())

    def wire_one(self, row: OneRow, index: int) -> bytes:  # noqa: D102
        return wire.messages([row.stored(index).tobytes()])

    def json(self, columns: Columns, index: int) -> Any:  # noqa: D102
        stored = columns.arrow(index).to_pylist()
        return feast_private.json_values([Value() if data is None else Value.FromString(data) for data in stored])

    def _decode(self, data: bytes) -> Any:
        return feast_value_type_to_python_type(Value.FromString(data), self._type)


def decoder_for(value_type: ValueType) -> Decoder:
    """The decoder for values that :func:`feast_quorin.convert.codecs.codec_for` encodes."""
    codec = codec_for(value_type)
    is_time = value_type in (ValueType.UNIX_TIMESTAMP, ValueType.UNIX_TIMESTAMP_LIST)
    if isinstance(codec, ListCodec):
        if not codec.dtype.is_numeric:
            return TextListDecoder(codec.kind)
        return TimeListDecoder() if is_time else ListDecoder(codec.dtype, codec.kind)
    if isinstance(codec, ScalarCodec):
        if not codec.dtype.is_numeric:
            return TextDecoder(codec.dtype is dtype.string, codec.kind)
        return TimeDecoder() if is_time else NumberDecoder(codec.dtype, codec.kind)
    return ProtoDecoder(value_type)


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _time(seconds: int) -> datetime | None:
    return None if seconds == _NO_TIME else datetime.fromtimestamp(seconds, tz=UTC)


def _typed(array: pa.Array) -> pa.Array:
    """An array as Arrow would infer it from a list: without a type if all values are null."""
    return pa.nulls(len(array)) if array.null_count == len(array) else array


def _is_empty(array: pa.ListArray) -> bool:
    """Whether all lists are empty or null."""
    return not len(array.flatten() if array.null_count else array.values)
