"""The entities of a request: Feast's rows, in the forms that Feast takes, as columns of keys and as entity ids.

Only what is certain is answered here. ``None`` means that Feast's own code has to look at the request: it knows what to
do, or what to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feast_quorin.keys import EMPTY, SEPARATOR, escaped

_RANGES = {ValueType.INT64: (-(2**63), 2**63 - 1), ValueType.INT32: (-(2**31), 2**31 - 1)}
_KINDS = {ValueType.INT64: "int64_val", ValueType.INT32: "int32_val", ValueType.STRING: "string_val"}

Keys = tuple[tuple[str, ...], list[list[Any]]]
"""The names of the columns of a request, and their values."""


def key_columns(entity_rows: Any) -> Keys | None:
    """The rows of a request as columns of equal length, at least one row long."""
    if type(entity_rows) is list:
        return _from_rows(entity_rows)
    if not isinstance(entity_rows, Mapping):
        return None
    columns = [_as_list(values) for values in entity_rows.values()]
    known = [values for values in columns if values]
    if not known or len(known) < len(columns) or len({*map(len, known)}) > 1:
        return None
    return tuple(entity_rows), known


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of join keys: its name in the request, and Feast's type of it."""

    name: str
    value_type: ValueType

    def normalised(self, values: list[Any]) -> list[Any] | None:
        """The values as Feast would give them back: ints or strings, exactly."""
        kinds = {*map(type, values)}
        if self.value_type is ValueType.STRING:
            return values if kinds == {str} else self._converted(values)
        least, most = _RANGES[self.value_type]
        if kinds != {int}:
            return self._converted(values)
        return values if least <= min(values) and max(values) <= most else None

    def text(self, value: Any) -> str | None:
        """One value as a component of an entity id, None if it takes :meth:`normalised` to say."""
        if self.value_type is ValueType.STRING:
            return escaped(value) if type(value) is str else None
        least, most = _RANGES[self.value_type]
        return str(value) if type(value) is int and least <= value <= most else None

    def protos(self, values: list[Any]) -> list[Any]:
        """Normalised values as ``Value`` protos."""
        kind = _KINDS[self.value_type]
        return [Value(**{kind: value}) for value in values]

    def texts(self, values: list[Any]) -> list[str]:
        """Normalised values as components of entity ids."""
        return [escaped(value) for value in values] if self.value_type is ValueType.STRING else [*map(str, values)]

    def _converted(self, values: list[Any]) -> list[Any] | None:
        """What Feast's own conversion makes of strings for integers, NumPy's numbers, and protos."""
        kind = _KINDS[self.value_type]
        try:
            protos = python_values_to_proto_values(values, self.value_type)
        except Exception:  # noqa: BLE001 - whatever it is, Feast raises it again where it does the same
            return None
        if any(proto.WhichOneof("val") != kind for proto in protos):
            return None
        return [getattr(proto, kind) for proto in protos]


def can_be_key(value_type: ValueType | None) -> bool:
    """Whether a column of this type is answered here."""
    return value_type in _KINDS


def entity_id(components: Sequence[str]) -> str:
    """An entity id from its components, in the order of the join keys' names; without any, the one of no entity."""
    return SEPARATOR.join(components) if components else EMPTY


def entity_ids(columns: Sequence[list[str]], row_count: int) -> list[str]:
    """The same for columns of components."""
    if len(columns) == 1:
        return columns[0]
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
