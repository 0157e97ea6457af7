"""The columns and categories that a fitted model knows of itself.

Models are recognized by what they offer, so that none of their libraries is imported here.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from quorin.errors import InvalidRowError

_LIGHTGBM_CATEGORIES = re.compile(r"^\[categorical_feature: ([\d,]+)\]$", re.MULTILINE)


def model_inputs(model: Any) -> dict[str, Any]:
    """See :func:`quorin.assembly.model_inputs`."""
    core = _fitted(model)
    if hasattr(core, "pandas_categorical") and hasattr(core, "model_to_string"):
        names = list(core.feature_name())
        return _inputs(names, _lightgbm_categories(core, names))
    if hasattr(core, "feature_types") and hasattr(core, "save_raw"):
        return _inputs(core.feature_names, _xgboost_categories(core))
    return _inputs(getattr(core, "feature_names_in_", None), {})


def _fitted(model: Any) -> Any:
    """The booster in a wrapper of scikit-learn's kind; else the model itself."""
    if hasattr(model, "get_booster"):
        return model.get_booster()
    return getattr(model, "booster_", model)


def _inputs(names: Any, categories: dict[str, list[Any]]) -> dict[str, Any]:
    columns = [] if names is None else [str(name) for name in names]
    if not columns:
        raise InvalidRowError("the model does not know the names of its columns: fit it with a table, or name them")
    return {"columns": columns, "categories": categories}


def _lightgbm_categories(booster: Any, names: list[str]) -> dict[str, list[Any]]:
    """LightGBM keeps the categories of columns of pandas in their order, and the columns' indexes among the
    parameters.
    """
    known = booster.pandas_categorical or []
    stated = _LIGHTGBM_CATEGORIES.search(booster.model_to_string())
    indexes = [int(index) for index in stated[1].split(",")] if stated else []
    if len(known) != len(indexes):
        return {}
    return {names[index]: list(values) for index, values in zip(indexes, known, strict=True)}


def _xgboost_categories(booster: Any) -> dict[str, list[Any]]:
    """XGBoost keeps categories since 3.1; some versions cut texts whose characters take several bytes, so those columns
    are left to the caller.
    """
    if "c" not in (booster.feature_types or []) or not hasattr(booster, "get_categories"):
        return {}
    kept = {
        name: column for name, column in booster.get_categories(export_to_arrow=True).to_arrow() if column is not None
    }
    return {name: column.to_pylist() for name, column in kept.items() if _is_whole(column)}


def _is_whole(categories: pa.Array) -> bool:
    """Whether these are no texts, or texts in ASCII. A text that was cut always keeps a byte of another."""
    is_text = pa.types.is_string(categories.type) or pa.types.is_large_string(categories.type)
    return not is_text or b"".join(categories.cast(pa.large_binary()).to_pylist()).isascii()
