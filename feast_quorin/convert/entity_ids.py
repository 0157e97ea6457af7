r"""Entity keys: Feast's join keys and values as one entity id.

The values of the join keys, ordered by the names of the join keys and joined by ``|``::

    driver_id=1001                -> 1001
    city="Oslo", shop=7           -> Oslo|7
    name=""                       -> \e
    no join key at all            -> \e
    name="a|b\c"                  -> a\|b\\c

Every join key of a view has one type, so different keys have different ids. A view that is applied with other join keys
starts empty (:func:`feast_quorin.apply.apply_view`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from feast_quorin.convert.entity_ids_fast import INTEGERS, columns_of_keys
from quorin.errors import EntityIdTooLongError

SEPARATOR = "|"
EMPTY = r"\e"
MAX_ID_BYTES = 4096
"""The longest id, in UTF-8 bytes, that segments of views accept."""

_TEXT = {"string_val", "uuid_val", "time_uuid_val", "decimal_val", "json_val"}
_COMPONENT = re.compile(r"(?:\\.|[^\\|])+", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def entity_ids(entity_keys: Iterable[Any]) -> list[str]:
    """The ids of ``EntityKey`` protos.

    :raises ValueError: for a null or a value that is not a scalar; the text names the join key.
    """
    return [_entity_id(list(key.join_keys), list(key.entity_values)) for key in entity_keys]


def entity_ids_column(entity_keys: Sequence[Any]) -> pa.Array:
    """:func:`entity_ids` as an Arrow array; faster for many keys."""
    ids = _ids_without_protos(entity_keys)
    return pa.array(entity_ids(entity_keys), pa.string()) if ids is None else ids


def entity_ids_of_rows(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ids of rows from Feast's request code, which map join keys to ``Value`` protos; see :func:`entity_ids`."""
    return [_entity_id(list(row), list(row.values())) for row in rows]


def entity_id_column(components: Mapping[str, pa.Array]) -> pa.Array:
    """The ids of many rows. ``components`` has a column of :func:`component` for each join key, at least one."""
    columns = [components[name] for name in sorted(components)]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, SEPARATOR)


def check_length(byte_count: int) -> None:
    """:raises EntityIdTooLongError: for an id of more than 4,096 bytes."""
    if byte_count > MAX_ID_BYTES:
        raise EntityIdTooLongError(f"expected an entity key of at most {MAX_ID_BYTES} bytes, got {byte_count}")


def key_values(key: Any) -> dict[str, Any]:
    """The join keys of an ``EntityKey`` proto with their values as Python objects, None for a null."""
    kinds = [(value, value.WhichOneof("val")) for value in key.entity_values]
    return dict(zip(key.join_keys, [getattr(value, kind) if kind else None for value, kind in kinds], strict=False))


def numbers_column(numbers: pa.Array) -> pa.Array:
    """A column of integers as components of ids."""
    return numbers.cast(pa.string())


def escaped_column(texts: pa.Array) -> pa.Array:
    """A column of strings as components of ids: :func:`escaped` for a column."""
    if pc.any(pc.match_substring_regex(texts, r"[\\|]")).as_py():
        slashes = pc.replace_substring(texts, "\\", "\\\\")
        texts = pc.replace_substring(slashes, SEPARATOR, "\\" + SEPARATOR)
    empty = pc.equal(texts, "")
    return pc.if_else(empty, EMPTY, texts) if pc.any(empty).as_py() else texts


def escaped(text: str) -> str:
    """A string as a component of an id."""
    if "\\" in text or SEPARATOR in text:
        return text.replace("\\", "\\\\").replace(SEPARATOR, "\\" + SEPARATOR)
    return text or EMPTY


def component(value: Any) -> str:
    """One value of a join key as a component of an id.

    :raises ValueError: for a null or a value that is not a scalar.
    """
    kind = value.WhichOneof("val")
    if kind in INTEGERS:
        return str(getattr(value, kind))
    if kind in _TEXT:
        return escaped(getattr(value, kind))
    if kind == "bytes_val":
        return value.bytes_val.hex() or EMPTY
    if kind in ("float_val", "double_val", "bool_val"):
        return repr(getattr(value, kind))
    got = "null" if kind in (None, "null_val") else kind
    raise ValueError(f"expected one value, such as a string, got {got}")


def entity_key(entity_id: str, kinds: Mapping[str, ValueType]) -> EntityKey:
    """The ``EntityKey`` proto of an id, in a view with join keys of these types; the inverse of :func:`entity_ids`."""
    parts = dict(zip(sorted(kinds), _COMPONENT.findall(entity_id), strict=True))
    return EntityKey(join_keys=list(kinds), entity_values=[_value(parts[name], kind) for name, kind in kinds.items()])


def key_columns(ids: pa.Array, kinds: Mapping[str, ValueType]) -> dict[str, pa.Array]:
    """The values of the join keys of ids, as a typed column for each join key; the inverse of :func:`entity_ids`."""
    texts, names = ids.cast(pa.string()), sorted(kinds)
    if len(names) <= 1:
        parts = [texts]
    elif _has_escapes(texts):
        rows = [_COMPONENT.findall(text) for text in texts.to_pylist()]
        parts = [pa.array([row[index] for row in rows], pa.string()) for index in range(len(names))]
    else:
        flat = pc.split_pattern(texts, SEPARATOR).flatten()
        parts = [flat.take(pa.array(range(index, len(flat), len(names)), pa.int64())) for index in range(len(names))]
    return {name: _typed(part, kinds[name]) for name, part in zip(names, parts, strict=False)}


def _typed(texts: pa.Array, kind: ValueType) -> pa.Array:
    """Components of ids as the values of a join key."""
    member = f"{kind.name.lower()}_val"
    if member in INTEGERS:
        return texts.cast(pa.int64())
    if member in _TEXT and not _has_escapes(texts):
        return texts
    return pa.array([_unescaped(text, kind) for text in texts.to_pylist()])


def _has_escapes(texts: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring(texts, "\\")).as_py())


def _value(text: str, kind: ValueType) -> Value:
    value = Value()
    setattr(value, f"{kind.name.lower()}_val", _unescaped(text, kind))
    return value


def _unescaped(text: str, kind: ValueType) -> Any:
    """A component of an id as the value of a join key."""
    value: Any = "" if text == EMPTY else _ESCAPE.sub(r"\1", text)
    member = f"{kind.name.lower()}_val"
    if member in INTEGERS:
        value = int(value)
    elif kind is ValueType.BYTES:
        value = bytes.fromhex(value)
    elif kind in (ValueType.FLOAT, ValueType.DOUBLE):
        value = float(value)
    elif kind is ValueType.BOOL:
        value = value == "True"
    return value


def _ids_without_protos(entity_keys: Sequence[Any]) -> pa.Array | None:
    """The ids of keys that all have the same join keys, with integers or strings as values; None for others."""
    columns = columns_of_keys(entity_keys)
    if columns is None:
        return None
    parts = [
        numbers_column(column) if pa.types.is_integer(column.type) else escaped_column(column)
        for _, column in sorted(columns.items())
    ]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, SEPARATOR)


def _entity_id(join_keys: list[str], values: list[Any]) -> str:
    if not join_keys and not values:
        return EMPTY
    if len(join_keys) != len(values):
        raise ValueError(f"expected one value for each join key, got join keys {join_keys!r} and {len(values)} values")
    if len(values) == 1:
        return _component(join_keys[0], values[0])
    pairs = sorted(zip(join_keys, values, strict=True), key=lambda pair: pair[0])
    return SEPARATOR.join([_component(name, value) for name, value in pairs])


def _component(join_key: str, value: Any) -> str:
    try:
        return component(value)
    except ValueError as error:
        raise ValueError(f"join key {join_key!r}: {error}") from None
