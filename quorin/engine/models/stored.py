"""The columns of a model as JSON, to be kept beside the model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quorin.engine.models.categories import ERROR, Categories
from quorin.engine.models.layout import MatrixLayout, MatrixPart, ModelColumn
from quorin.errors import InvalidRowError, QuorinError, SchemaMismatchError
from quorin.schema import FeatureField, dtype, fingerprint

if TYPE_CHECKING:
    from quorin.schema import Schema

FORMAT = "quorin-model-columns"
VERSION = 1


def layout_to_json(layout: MatrixLayout, schemas: Sequence[Schema]) -> str:
    """A layout as JSON, with the schemas that its parts are of, in the same order."""
    parts = [
        {
            "name": part.name,
            "schema": schema.__name__,
            "version": schema.version,
            "fingerprint": f"{fingerprint(schema):016x}",
        }
        for part, schema in zip(layout.parts, schemas, strict=True)
    ]
    saved = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": layout.dtype.name,
        "parts": parts,
        "columns": [_saved_column(layout, column) for column in layout.columns],
    }
    return json.dumps(saved, indent=1, ensure_ascii=False, allow_nan=False)


def layout_from_json(
    text: str, parts: Sequence[MatrixPart], schemas: Sequence[Schema], *, any_version: bool = False
) -> MatrixLayout:
    """The layout that ``layout_to_json`` wrote, for parts in the same order, checked against their schemas.

    :raises SchemaMismatchError: for other parts, for other schemas unless ``any_version``, and for a field that is gone
        or has another type. :raises InvalidRowError: for other text.
    """
    saved = _loaded(text)
    try:
        expected = [part["name"] for part in saved["parts"]]
        if expected != [part.name for part in parts]:
            raise SchemaMismatchError(f"the model reads {expected}, got {[part.name for part in parts]}")
        for part, schema in zip(saved["parts"], schemas, strict=True):
            if part["fingerprint"] != f"{fingerprint(schema):016x}" and not any_version:
                raise SchemaMismatchError(
                    f"the model was saved with {part['schema']} v{part['version']}, fingerprint {part['fingerprint']}; "
                    f"here is {schema.__name__} v{schema.version}, {fingerprint(schema):016x}. Check the features and "
                    "save it anew, or pass any_version=True"
                )
        columns = [_loaded_column(column, parts) for column in saved["columns"]]
        return MatrixLayout(parts, columns, saved["dtype"])
    except QuorinError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InvalidRowError(f"expected the columns of a model in JSON: {error!r}") from error


def _loaded(text: str) -> dict[str, Any]:
    """What ``layout_to_json`` wrote, or will write in a later version."""
    try:
        saved: dict[str, Any] = json.loads(text)
        kind = saved["format"], saved["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRowError(f"expected the columns of a model in JSON, got {str(text)[:80]!r} ({error!r})") from error
    if kind != (FORMAT, VERSION):
        raise InvalidRowError(f"expected {FORMAT} version {VERSION}, got {kind[0]!r} version {kind[1]!r}")
    return saved


def _saved_column(layout: MatrixLayout, column: ModelColumn) -> dict[str, Any]:
    fields = layout.parts[column.part].fields
    source = next(name for name, field in fields.items() if field is column.field)
    saved = {
        "name": column.name,
        "part": column.part,
        "field": source,
        "dtype": column.field.dtype.name,
        "shape": list(column.field.shape),
        "missing": _to_json(column.missing),
    }
    if column.categories is not None:
        codes, unknown = column.categories.codes, column.categories.unknown
        saved["categories"] = list(codes)
        saved["codes"] = [_to_json(code) for code in codes.values()]
        saved["unknown"] = ERROR if unknown is None else _to_json(unknown)
    return saved


def _loaded_column(saved: dict[str, Any], parts: Sequence[MatrixPart]) -> ModelColumn:
    part, name = parts[saved["part"]], saved["name"]
    field = part.fields.get(saved["field"])
    expected = FeatureField("field", dtype[saved["dtype"]], tuple(saved["shape"]))
    if field is None or (field.dtype, field.shape) != (expected.dtype, expected.shape):
        got = "is gone" if field is None else f"is {field.dtype.name} {field.shape}"
        raise SchemaMismatchError(
            f"{part.name}: the model reads {saved['field']!r} as {expected.dtype.name} {expected.shape}, which {got}"
        )
    categories = None
    if "categories" in saved:
        codes = dict(zip(saved["categories"], map(_from_json, saved["codes"]), strict=True))
        unknown = saved["unknown"]
        categories = Categories.of(name, field, codes, unknown if unknown == ERROR else _from_json(unknown))
    return ModelColumn(name, saved["part"], field, _from_json(saved["missing"]), categories)


def _to_json(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _from_json(number: float | str) -> float:
    return float(number)
