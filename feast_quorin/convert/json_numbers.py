"""Columns of numbers as orjson writes them, equal to what Feast's feature server writes.

orjson writes arrays of NumPy without an object for each number. Feast writes float32 as the float64 of the same value,
and NaN and infinities, which JSON lacks, as the strings of protobuf's JSON.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = np.ndarray[Any, Any]

NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""The JSON strings of floats that are no numbers of JSON, by their ``repr``."""


def of(values: Numbers) -> Numbers | list[Any]:
    """One column of numbers or booleans, float32 widened before."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return [value if np.isfinite(value) else NAMES[repr(value)] for value in values.tolist()]
    return np.ascontiguousarray(values)


def floats(columns: Numbers) -> list[Numbers | list[Any]]:
    """:func:`of` of columns, shape ``(columns, N)``, all in one step: of few rows, the steps take longest."""
    matrix = columns.astype(np.float64)
    return [*matrix] if np.isfinite(matrix).all() else [*map(of, matrix)]


def with_nulls(values: Numbers | list[Any], valid: np.ndarray[Any, np.dtype[np.bool_]] | None) -> Numbers | list[Any]:
    """The column with None where ``valid`` is false."""
    if valid is None or valid.all():
        return values
    objects = values.tolist() if isinstance(values, np.ndarray) else values
    for row in np.flatnonzero(~valid).tolist():
        objects[row] = None
    return objects


def lists(array: pa.ListArray) -> Numbers | list[Any]:
    """One column of lists: a matrix if all are of one length, else a list of arrays and None."""
    ends = array.offsets.to_numpy()
    flat = array.values.to_numpy(zero_copy_only=False)[ends[0] : ends[-1]]
    elements = of(flat.astype(np.float64) if flat.dtype.kind == "f" else flat)
    sizes = np.diff(ends)
    if isinstance(elements, np.ndarray) and not array.null_count and len(sizes) and (sizes == sizes[0]).all():
        return elements.reshape(len(sizes), -1) if sizes[0] else [[] for _ in sizes]
    rows: list[Any] = [elements[start:stop] for start, stop in pairwise((ends - ends[0]).tolist())]
    if array.null_count:
        for row in np.flatnonzero(~np.asarray(array.is_valid())).tolist():
            rows[row] = None
    return rows
