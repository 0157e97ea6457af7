"""Results of on-demand views, converted as Feast converts them.

Feast converts results to protobuf and back. Quorin skips that where it changes nothing but precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType

from feast_quorin import feast_private
from feast_quorin.convert import response_wire as wire
from feast_quorin.convert.codecs import codec_for, number_lists, value_column
from feast_quorin.read.request import INTEGER_RANGES

_PYTHON_TYPES = {
    ValueType.DOUBLE: float,
    ValueType.FLOAT: float,
    ValueType.INT64: int,
    ValueType.INT32: int,
    ValueType.STRING: str,
    ValueType.BOOL: bool,
}
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class Computed:
    """One computed feature: its values as Feast returns them, and as protobuf."""

    __slots__ = ("_protos", "_type", "_values", "name")

    def __init__(self, name: str, results: Any, value_type: ValueType) -> None:
        """Convert as Feast does.

        :raises Exception: what Feast raises about values that are not of the declared type.
        """
        self.name = name
        self._type = value_type
        self._values = _without_protobuf(results, value_type)
        self._protos: list[Any] = [] if self._values else python_values_to_proto_values(results, value_type)

    @property
    def is_exact(self) -> bool:
        """Whether the values are known without their protobuf."""
        return bool(self._values)

    def arrow(self) -> tuple[ValueType, pa.Array]:
        """The values in the type in which they would be stored."""
        if self._values:
            return self._type, pa.array(self._values, codec_for(self._type).arrow_type)
        return value_column(self._protos)

    def __len__(self) -> int:
        return len(self._values or self._protos)

    def values(self, value_type: ValueType | None) -> list[Any]:
        """Python values; ``value_type`` is the type that the response knows of the name, mostly None."""
        if self._values:
            return self._values[:]
        return [feast_value_type_to_python_type(value, value_type) for value in self._protos]

    def lists(self) -> pa.ListArray | None:
        """The values as an Arrow array if they are lists of numbers."""
        return None if self._values else number_lists(self._protos, None)

    def wire(self) -> bytes:
        """The values as ``values`` of a ``FeatureVector`` on the wire."""
        protos = python_values_to_proto_values(self._values, self._type) if self._values else self._protos
        return wire.messages([proto.SerializeToString() for proto in protos])

    def json(self) -> list[Any]:
        """The values as Feast's feature server writes them."""
        return self._values or feast_private.json_values(self._protos)


def _without_protobuf(results: Any, value_type: ValueType) -> list[Any] | None:
    """The values that the way through protobuf would return; None if only the conversion itself can tell."""
    expected = _PYTHON_TYPES.get(value_type)
    if expected is None or len(results) == 0:
        return None
    is_exact = isinstance(results, np.ndarray) and results.dtype in (np.float64, np.int64)
    values: list[Any] = results.tolist() if is_exact else list(results)
    if {*map(type, values)} - {type(None)} != {expected}:
        return None
    if expected is float:
        values = [None if value != value else value for value in values]
        return _rounded(values) if value_type is ValueType.FLOAT else values
    if expected is int:
        least, most = INTEGER_RANGES[value_type]
        numbers = [value for value in values if value is not None]
        return values if least <= min(numbers) and max(numbers) <= most else None
    return values


def _rounded(values: list[Any]) -> list[Any] | None:
    """The values rounded to float32; None if one is out of its range."""
    numbers = [value for value in values if value is not None]
    if any(abs(value) > _MAX_FLOAT32 for value in numbers):
        return None
    rounded = iter(np.array(numbers, np.float32).tolist())
    return [None if value is None else next(rounded) for value in values]
