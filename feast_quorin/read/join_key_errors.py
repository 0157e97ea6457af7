"""Requests that Feast refuses because of a join key: which view, row and value it was, where Feast does not say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from feast.errors import FeastError
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feast_quorin.convert.entity_ids import component
from feast_quorin.convert.locating import REFUSALS, first_refused, reason
from feast_quorin.feast_private import request_context
from feast_quorin.read.request import key_columns
from quorin.errors import QuorinError


@contextmanager
def naming_refused_keys(features: Any, entity_rows: Any, registry: Any, project: str) -> Iterator[None]:
    """Where Feast refuses a join key inside, raise an error of the same type that says view, row, join key and value; a
    ``ValueError`` for one that is made of more than a text, as ``UnicodeEncodeError`` is.

    Other errors pass as they are.
    """
    try:
        yield
    except REFUSALS as error:
        is_clear = isinstance(error, (FeastError, QuorinError))
        text = None if is_clear else _refused_key(features, entity_rows, registry, project)
        if text is None:
            raise
        kind = type(error) if type(error) in (ValueError, TypeError, OverflowError) else ValueError
        raise kind(text) from error


def _refused_key(features: Any, entity_rows: Any, registry: Any, project: str) -> str | None:
    columns = key_columns(entity_rows)
    if columns is None:
        return None
    try:
        context = request_context(registry, project, features, full_names=False)
    except Exception:  # noqa: BLE001 - then it is the features that Feast refused, not a key
        return None
    types, grouped = context.join_key_types, context.grouped
    for name, values in zip(*columns, strict=True):
        check = partial(_check, kind=types.get(name, ValueType.UNKNOWN))
        views = [table.name for table, _ in grouped if name in _keys(table)]
        try:
            check(values)
        except REFUSALS as found:
            if views:
                row = first_refused(values, check)
                cause = reason(values, row, check) or found
                return f"view {', '.join(map(repr, views))}, row {row}, join key {name!r}: got {values[row]!r}: {cause}"
    return None


def _check(values: list[Any], kind: ValueType) -> None:
    for value in python_values_to_proto_values(values, kind):
        component(value)


def _keys(table: Any) -> set[str]:
    """The join keys of a view as this request names them."""
    renamed: Mapping[str, str] = table.projection.join_key_map or {}
    return {renamed.get(column.name, column.name) for column in getattr(table, "entity_columns", None) or ()}
