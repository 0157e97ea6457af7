"""Which values of two Arrow columns are the same, without a Python object for any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Mask


def is_equal(one: pa.Array, other: pa.Array, *, rtol: float = 0.0, atol: float = 0.0) -> Mask:
    """Where two columns of one type have the same value; null equals null, and NaN equals NaN.

    Floats may differ by ``atol + rtol * abs(other)``, as in ``numpy.isclose``. Elements of lists, and all else, must be
    exactly the same.
    """
    nulls, other_nulls = (column.is_null().to_numpy(zero_copy_only=False) for column in (one, other))
    equal: Mask = nulls == other_nulls
    if pt.is_fixed_size_list(one.type):
        equal &= nulls | _rows_are_equal(one, other)
        return equal
    rows = np.flatnonzero(~(nulls | other_nulls))
    if len(rows) < len(one):
        one, other = one.take(pa.array(rows)), other.take(pa.array(rows))
    equal[rows] = _present_are_equal(one, other, rtol, atol)
    return equal


def _present_are_equal(one: pa.Array, other: pa.Array, rtol: float, atol: float) -> Mask:
    """For columns without nulls."""
    if pt.is_list(one.type) or pt.is_large_list(one.type):
        return _lists_are_equal(one, other)
    if pt.is_floating(one.type):
        left, right = (column.to_numpy(zero_copy_only=False) for column in (one, other))
        # At double precision: a float32's tolerance would be rounded to its own.
        close: Mask = np.isclose(left.astype(np.float64), right.astype(np.float64), rtol, atol, equal_nan=True)
        return close
    mask: Mask = pc.equal(one, other).to_numpy(zero_copy_only=False)
    return mask


def _rows_are_equal(one: pa.Array, other: pa.Array) -> Mask:
    """For lists of one fixed size. What is stored in place of a null is compared too.

    Arrow's ``take`` returns other rows of a slice of nested fixed-size lists (pyarrow 26), so none is used here.
    """
    size = one.type.list_size
    left, right = (column.values.slice(column.offset * size, len(column) * size) for column in (one, other))
    rows: AnyArray = is_equal(left, right).reshape(len(one), size)
    same: Mask = np.logical_and.reduce(rows, axis=1)
    return same


def _lists_are_equal(one: pa.Array, other: pa.Array) -> Mask:
    sizes, other_sizes = (_sizes(column) for column in (one, other))
    equal: Mask = sizes == other_sizes
    rows = np.flatnonzero(equal & (sizes > 0))
    if not len(rows):
        return equal
    alike = is_equal(one.take(pa.array(rows)).flatten(), other.take(pa.array(rows)).flatten())
    starts = np.concatenate([[0], np.cumsum(sizes[rows])[:-1]])
    equal[rows] = np.logical_and.reduceat(alike, starts)
    return equal


def _sizes(lists: pa.Array) -> AnyArray:
    sizes: AnyArray = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return sizes
