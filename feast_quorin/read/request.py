"""The entities of a request: Feast's rows, in every form that Feast takes, as columns of keys and as entity ids.

Only certain cases are handled here. ``None`` means that Feast's own code must answer the request, or refuse it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import RepeatedValue
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType

from feast_quorin import feast_private
from feast_quorin.convert import response_wire as wire
from feast_quorin.convert.codecs import codec_for, value_column
from feast_quorin.convert.entity_ids import EMPTY, SEPARATOR, component, escaped
from quorin.assembly import number_ids

_INT64 = (-(2**63), 2**63 - 1)
INTEGER_RANGES = {ValueType.INT64: _INT64, ValueType.INT32: (-(2**31), 2**31 - 1)}
"""The least and the greatest integer of each type."""

_MEMBERS = {ValueType.INT64: "int64_val", ValueType.INT32: "int32_val", ValueType.STRING: "string_val"}

Keys = tuple[tuple[str, ...], list[list[Any]]]
"""The names of the columns of a request, and their values."""


def key_columns(entity_rows: Any) -> Keys | None:
    """The rows of a request as columns of equal length, at least one row long."""
    if type(entity_rows) is list:
        return _from_rows(entity_rows)
    if not isinstance(entity_rows, Mapping):
        return None
    columns = [_as_list(values) for values in entity_rows.values()]
    filled = [values for values in columns if values]
    if not filled or len(filled) < len(columns) or len({*map(len, filled)}) > 1:
        return None
    return tuple(entity_rows), filled


class Column(ABC):
    """A column of a request: its name there, and its Feast type.

    Each class has its own normalised form of the values of a request, which all methods but :meth:`text` take.
    """

    def __init__(self, name: str, value_type: ValueType) -> None:
        self.name = name
        self.value_type = value_type

    @abstractmethod
    def normalised(self, values: list[Any]) -> list[Any] | None:
        """The values, checked and converted as Feast does; None if only Feast can judge them."""

    @abstractmethod
    def text(self, value: Any) -> str | None:
        """One value of a request as a component of an entity id; None if it needs :meth:`normalised` first."""

    @abstractmethod
    def texts(self, values: list[Any]) -> list[str]:
        """Normalised values as components of entity ids.

        :raises ValueError: for values that cannot be keys.
        """

    def ids(self, values: list[Any]) -> pa.Array:
        """Normalised values as entity ids, for views with this one join key."""
        return pa.array(self.texts(values), pa.string())

    @abstractmethod
    def python(self, values: list[Any]) -> list[Any]:
        """Normalised values as Feast returns them, in a new list."""

    def for_frame(self, values: list[Any]) -> Any:
        """Normalised values for a frame: a list, or an array of the dtype that pandas would infer."""
        return self.python(values)

    @abstractmethod
    def wire(self, values: list[Any]) -> bytes:
        """Normalised values as ``values`` of a ``FeatureVector`` on the wire."""

    @abstractmethod
    def json(self, values: list[Any]) -> list[Any]:
        """Normalised values as Feast's feature server writes them."""

    @abstractmethod
    def arrow(self, values: list[Any]) -> tuple[ValueType, pa.Array]:
        """Normalised values in the type in which they would be stored."""

    @abstractmethod
    def received(self, column: pa.Array) -> list[Any]:
        """Normalised values from what :meth:`arrow` returned."""


class ScalarKey(Column):
    """Join keys that are integers or strings: normalised, they are what Feast returns."""

    def __init__(self, name: str, value_type: ValueType) -> None:
        super().__init__(name, value_type)
        self._kind = _MEMBERS[value_type]

    def python(self, values: list[Any]) -> list[Any]:  # noqa: D102 - the base class says it
        return values[:]

    def json(self, values: list[Any]) -> list[Any]:  # noqa: D102
        return values

    def arrow(self, values: list[Any]) -> tuple[ValueType, pa.Array]:  # noqa: D102
        return self.value_type, pa.array(values, codec_for(self.value_type).arrow_type)

    def received(self, column: pa.Array) -> list[Any]:  # noqa: D102
        values: list[Any] = column.to_pylist()
        return values

    def _converted(self, values: list[Any]) -> list[Any] | None:
        """The result of Feast's own conversion, for strings instead of integers, NumPy's numbers, and protos."""
        protos = converted(values, self.value_type)
        if protos is None or any(proto.WhichOneof("val") != self._kind for proto in protos):
            return None
        return [getattr(proto, self._kind) for proto in protos]


class IntegerKey(ScalarKey):
    """Join keys that are integers."""

    def __init__(self, name: str, value_type: ValueType) -> None:
        super().__init__(name, value_type)
        self._least, self._most = INTEGER_RANGES[value_type]

    def normalised(self, values: list[Any]) -> list[Any] | None:  # noqa: D102
        if {*map(type, values)} != {int}:
            return self._converted(values)
        return values if self._least <= min(values) and max(values) <= self._most else None

    def text(self, value: Any) -> str | None:  # noqa: D102
        return str(value) if type(value) is int and self._least <= value <= self._most else None

    def texts(self, values: list[Any]) -> list[str]:  # noqa: D102
        return [*map(str, values)]

    def ids(self, values: list[Any]) -> pa.Array:  # noqa: D102
        return number_ids(np.array(values, np.int64))

    def for_frame(self, values: list[Any]) -> Any:  # noqa: D102
        return np.array(values, np.int64)

    def wire(self, values: list[Any]) -> bytes:  # noqa: D102
        if len(values) == 1:
            return wire.number(self._kind, "q", values[0])
        return wire.numbers(self._kind, np.array(values, np.int64), None)


class TextKey(ScalarKey):
    """Join keys that are strings."""

    def normalised(self, values: list[Any]) -> list[Any] | None:  # noqa: D102
        return values if {*map(type, values)} == {str} else self._converted(values)

    def text(self, value: Any) -> str | None:  # noqa: D102
        return escaped(value) if type(value) is str else None

    def texts(self, values: list[Any]) -> list[str]:  # noqa: D102
        joined = "".join(values)
        if all(values) and "\\" not in joined and SEPARATOR not in joined:
            return values
        return [escaped(value) for value in values]

    def wire(self, values: list[Any]) -> bytes:  # noqa: D102
        return wire.texts(self._kind, [value.encode() for value in values])


class ProtoColumn(Column):
    """Join keys of any other type, and columns whose type Feast infers from the values: ``Value`` protos."""

    def normalised(self, values: list[Any]) -> list[Any] | None:  # noqa: D102
        return converted(values, self.value_type)

    def text(self, value: Any) -> str | None:  # noqa: ARG002, D102
        return None

    def texts(self, values: list[Any]) -> list[str]:  # noqa: D102
        if len({value.WhichOneof("val") for value in values}) > 1:
            raise ValueError(f"join key {self.name!r}: expected values of one kind")
        return [component(value) for value in values]

    def python(self, values: list[Any]) -> list[Any]:  # noqa: D102
        return [feast_value_type_to_python_type(value) for value in values]

    def wire(self, values: list[Any]) -> bytes:  # noqa: D102
        return wire.messages([value.SerializeToString() for value in values])

    def json(self, values: list[Any]) -> list[Any]:  # noqa: D102
        return feast_private.json_values(values)

    def arrow(self, values: list[Any]) -> tuple[ValueType, pa.Array]:  # noqa: D102
        return value_column(values)

    def received(self, column: pa.Array) -> list[Any]:  # noqa: D102
        return codec_for(self.value_type).to_protos(column)


class RequestData(ProtoColumn):
    """Columns that on-demand views take from the request. Normalised, they are the Python values that Feast passes."""

    def normalised(self, values: list[Any]) -> list[Any] | None:  # noqa: D102
        kinds = {*map(type, values)}
        if kinds == {int}:
            return values if _INT64[0] <= min(values) and max(values) <= _INT64[1] else None
        if kinds == {float}:
            return [None if value != value else value for value in values]
        if kinds in ({str}, {bool}):
            return values
        protos = super().normalised(values)
        return None if protos is None else super().python(protos)

    def python(self, values: list[Any]) -> list[Any]:  # noqa: D102
        return values[:]


def key_column(name: str, value_type: ValueType | None) -> Column:
    """The column of a join key; ``value_type`` is None if no view of the request declares it."""
    if value_type is ValueType.STRING:
        return TextKey(name, value_type)
    if value_type in INTEGER_RANGES:
        return IntegerKey(name, value_type)
    return ProtoColumn(name, value_type or ValueType.UNKNOWN)


def converted(values: Any, value_type: ValueType) -> list[Any] | None:
    """Values as Feast's protos, None if Feast would raise."""
    try:
        protos: list[Any] = python_values_to_proto_values(values, value_type)
    except Exception:  # noqa: BLE001 - Feast's own path raises it again
        return None
    return protos


def is_convertible(values: list[Any]) -> bool:
    """Whether Feast can convert a column that no view uses. It leaves the column out if so, and may raise if not."""
    kinds = {*map(type, values)}
    if kinds == {int}:
        return _INT64[0] <= min(values) and max(values) <= _INT64[1]
    return kinds in ({str}, {float}, {bool}) or converted(values, ValueType.UNKNOWN) is not None


def entity_id(components: Sequence[str]) -> str:
    """An entity id from its components, in the order of the join keys' names; without any, that of entityless views."""
    return SEPARATOR.join(components) if components else EMPTY


def entity_ids(columns: Sequence[list[str]], row_count: int) -> list[str]:
    """Entity ids from columns of components, as :func:`entity_id` makes each."""
    return [*map(entity_id, zip(*columns, strict=True))] if columns else [EMPTY] * row_count


def _from_rows(rows: list[Any]) -> Keys | None:
    if len(rows) == 1:
        row = rows[0]
        return (tuple(row), [[value] for value in row.values()]) if type(row) is dict and row else None
    if {*map(type, rows)} != {dict}:
        return None
    names = tuple(rows[0])
    if {*map(len, rows)} != {len(names)} or not names:
        return None
    try:
        return names, [[row[name] for row in rows] for name in names]
    except KeyError:
        return None


def _as_list(values: Any) -> list[Any] | None:
    if type(values) is list:
        return values[:]
    if isinstance(values, RepeatedValue):
        return list(values.val)
    return list(values) if type(values) is tuple else None
