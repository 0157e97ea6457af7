"""What the columns of a model's matrix are made of, and the plans by which a kernel fills them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quorin.engine.format.abi import CORRUPT, FOUND, M_COLUMN_ITEMS, M_HEAD_ITEMS, STOPPED
from quorin.engine.models.categories import Categories
from quorin.engine.reads.gather import points_nowhere
from quorin.errors import InvalidBufferError, InvalidRowError, UnknownCategoryError
from quorin.schema import dtype as field_types

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Int64s
    from quorin.engine.reads.column_plan import ColumnPlan
    from quorin.engine.reads.columns import Columns
    from quorin.schema import FeatureField

_CODED = {field_types.string, field_types.int64, field_types.int32, field_types.uint8, field_types.bool}
_DTYPES = {np.dtype(np.float32): "float32", np.dtype(np.float64): "float64"}


class MatrixPart(NamedTuple):
    """Rows that columns are taken from: what they are called, and their fields by the names that the caller uses."""

    name: str
    fields: Mapping[str, FeatureField]


@dataclass(frozen=True)
class ModelColumn:
    """One column of a model, or as many as the elements of a field with a shape.

    ``part`` is the index of its part, ``missing`` what a null and a row that is not found become.
    """

    name: str
    part: int
    field: FeatureField
    missing: float
    categories: Categories | None


class _Bound(NamedTuple):
    """What the kernel takes for one plan of reads, which belongs to one attached file."""

    plan: ColumnPlan
    words: Int64s
    keys: AnyArray
    heap: int
    heap_bytes: int
    fill_row: Any
    fill_rows: Any


class MatrixLayout:
    """The columns of a model in their order, and their dtype: float32 or float64. Threads may share it."""

    def __init__(self, parts: Sequence[MatrixPart], columns: Sequence[ModelColumn], kind: Any) -> None:
        self.dtype = _float_dtype(kind)
        self.parts = tuple(parts)
        self.columns = tuple(columns)
        self.names = [name for column in columns for name in _element_names(column)]
        self.width = len(self.names)
        starts = np.cumsum([0, *(column.field.element_count or 1 for column in columns)]).tolist()
        self._targets = [
            [(column, start) for column, start in zip(columns, starts, strict=False) if column.part == part]
            for part in range(len(parts))
        ]
        self.fields = [[*dict.fromkeys(column.field.name for column, _ in targets)] for targets in self._targets]
        """By part, the names of the fields to read."""
        self._bound: list[_Bound | None] = [None] * len(parts)

    def matrix(self, rows: int, out: Any = None) -> AnyArray:
        """A caller's matrix, or a new one, of shape ``(rows, width)``.

        :raises InvalidBufferError: for one of another shape or dtype, or that cannot be written in place.
        """
        shape = (rows, self.width)
        if out is None:
            return np.empty(shape, self.dtype)
        is_fit = isinstance(out, np.ndarray) and out.dtype == self.dtype and out.shape == shape and out.flags.carray
        if not is_fit:
            got = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
            raise InvalidBufferError(
                f"out must be a writeable C-contiguous {self.dtype} array of shape {shape}, got {got}"
            )
        matrix: AnyArray = out
        return matrix

    def fill(self, part: int, columns: Columns, out: AnyArray) -> None:
        """Fill a part's columns of ``out``, shape ``(rows, width)``, from what was read of it.

        :raises UnknownCategoryError: for a category that the model does not know, where that is an error.
        """
        bound = self._bound[part]
        if bound is None or bound.plan is not columns.plan:
            bound = self._bound[part] = self._bind(part, columns)
        fill = bound.fill_rows if len(out) > 1 else bound.fill_row
        code = fill(bound.words, bound.keys, columns.buffer, columns.found, bound.heap, bound.heap_bytes, out.ravel())
        if code == CORRUPT:
            raise points_nowhere(columns.view)
        if code != FOUND:
            self._refuse_unknown(part, columns, STOPPED - code)

    def _bind(self, part: int, columns: Columns) -> _Bound:
        from quorin.engine import kernels

        kind, view = _DTYPES[self.dtype], columns.view
        return _Bound(
            columns.plan,
            *self._words(part, columns.plan),
            view.mapping.address + view.layout.heap_offset,
            view.layout.heap_bytes,
            getattr(kernels, f"fill_row_{kind}"),
            getattr(kernels, f"fill_rows_{kind}"),
        )

    def _words(self, part: int, plan: ColumnPlan) -> tuple[Int64s, AnyArray]:
        """The kernel's plan for columns that were read by a plan, and the bytes of the keys of its categories."""
        index_of = {field.name: index for index, field in enumerate(plan.fields)}
        targets = self._targets[part]
        head = [plan.bits_start, plan.bits_count, self.width, len(targets)]
        table_start = M_HEAD_ITEMS + M_COLUMN_ITEMS * len(targets)
        rows: list[list[int]] = []
        tables: list[Int64s] = []
        keys = b""
        for column, target in targets:
            index = index_of.get(column.field.name)
            start, null_byte, null_mask = (0, 0, 0) if index is None else (plan.starts[index], *plan.null_bits[index])
            field = column.field if index is None else plan.fields[index]
            at = -1
            if column.categories is not None:
                table, added = column.categories.table(len(keys))
                at, keys = table_start, keys + added
                table_start += len(table)
                tables.append(table)
            missing = int(np.float64(column.missing).view(np.int64))
            rows.append([field.dtype, start, field.element_count or 1, null_byte, null_mask, target, missing, at])
        words = np.concatenate([np.array(head, np.int64), np.array(rows, np.int64).ravel(), *tables])
        return words, np.frombuffer(keys or b"\0", np.uint8).copy()

    def _refuse_unknown(self, part: int, columns: Columns, stopped: int) -> None:
        targets = self._targets[part]
        row, number = divmod(stopped, len(targets))
        column = targets[number][0]
        index = [field.name for field in columns.fields].index(column.field.name)
        value = columns.arrow(index)[row].as_py()
        raise UnknownCategoryError(
            f"row {row}: the model has no category {value!r} of column {column.name!r}; it has "
            f"{column.categories and column.categories.shown()}. Choose unknown=nan or a number to let it pass"
        )


def matrix_layout(
    parts: Sequence[MatrixPart],
    columns: Sequence[str] | Mapping[str, str] | None,
    dtype: Any,
    categories: Mapping[str, Any] | None,
    unknown: Any,
    missing: Any,
) -> MatrixLayout:
    """The layout of a model's columns: names of fields, or model's names to names of fields; None for all that fit.

    :raises InvalidRowError: for a name that is no field, or of several parts, or not of a type that fits.
    """
    categories = dict(categories or {})
    if isinstance(columns, Mapping):
        pairs = list(columns.items())
    else:
        names = _all_names(parts, categories) if columns is None else columns
        pairs = [] if isinstance(names, str) else [(str(name), str(name)) for name in names]
    if not pairs:
        raise InvalidRowError(f"columns: expected the names of fields in the model's order, got {columns!r}")
    repeated = sorted({name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1})
    if repeated:
        raise InvalidRowError(f"columns: expected each name once, got {repeated} several times")
    made = []
    for name, source in pairs:
        part, field = _find(parts, source)
        known = None
        if name in categories:
            if field.dtype not in _CODED or field.shape:
                raise InvalidRowError(
                    f"column {name!r}: categories are texts, integers or booleans, not {_shown(field)}"
                )
            known = Categories.of(name, field, categories.pop(name), _of_column(unknown, name, math.nan))
        if known is None and not field.element_count:
            raise InvalidRowError(f"column {name!r} is {_shown(field)}: a model takes numbers, or texts by categories")
        made.append(ModelColumn(name, part, field, _number(name, _of_column(missing, name, math.nan)), known))
    for option, given in {"categories": categories, "missing": missing, "unknown": unknown}.items():
        wrong = sorted(given.keys() - {name for name, _ in pairs}) if isinstance(given, Mapping) else []
        if wrong:
            raise InvalidRowError(f"{option}: the model has no columns {wrong}; it has {[name for name, _ in pairs]}")
    return MatrixLayout(parts, made, dtype)


def _all_names(parts: Sequence[MatrixPart], categories: Mapping[str, Any]) -> list[str]:
    return [name for part in parts for name, field in part.fields.items() if field.element_count or name in categories]


def _find(parts: Sequence[MatrixPart], source: str) -> tuple[int, FeatureField]:
    """The part and the field of a name, or of ``part.name``."""
    owner, _, short = source.rpartition(".")
    found = [
        (index, part.fields[name])
        for index, part in enumerate(parts)
        for name, holds in ((source, True), (short, part.name == owner))
        if holds and name in part.fields
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        there = {part.name: list(part.fields) for part in parts}
        raise InvalidRowError(f"there is no field {source!r}; there are {there}")
    owners = [f"{parts[index].name}.{source}" for index, _ in found]
    raise InvalidRowError(f"several fields are called {source!r}: expected one of {owners}")


def _of_column(option: Any, name: str, default: Any) -> Any:
    """What an option says for one column: it is one value for all, or values by column."""
    return option.get(name, default) if isinstance(option, Mapping) else option


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidRowError(f"missing: column {name!r}: expected a number, got {value!r}")
    return float(value)


def _float_dtype(kind: Any) -> np.dtype[Any]:
    try:
        made: np.dtype[Any] | None = np.dtype(kind)
    except TypeError:
        made = None
    if made is None or made not in _DTYPES:
        raise InvalidRowError(f"dtype: expected float32 or float64, got {kind!r}")
    return made


def _element_names(column: ModelColumn) -> list[str]:
    """The column's name; with an index for each element of a field with a shape."""
    count = column.field.element_count
    return [f"{column.name}[{index}]" for index in range(count)] if column.field.shape else [column.name]


def _shown(field: FeatureField) -> str:
    return f"a field of {field.dtype.name}" + (f" with shape {field.shape}" if field.shape else "")
