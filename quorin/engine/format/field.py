"""One field of a row: its name, type, shape and default. Public as :mod:`quorin.schema`."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quorin.errors import SchemaError, SchemaTypeError

RESERVED_FIELD_NAMES = frozenset({"entity_id", "event_time_ns", "log_position", "schema"})
MAX_NAME_BYTES = 128
_MAX_ELEMENTS = 1 << 20
MAX_HISTORY = 10_000
_FIELD_NAME = re.compile(r"[^\W\d]\w*\Z")


class dtype(enum.IntEnum):  # noqa: N801 - reads as numpy's and Feast's dtypes do
    """Types of a field. The codes are part of the segment format and never change."""

    float32 = 1
    float64 = 2
    int32 = 3
    int64 = 4
    uint8 = 5
    bool = 6
    string = 7
    bytes = 8

    @property
    def is_numeric(self) -> bool:  # type: ignore[valid-type]
        """Whether values are fixed-size numbers (``bool`` included), so that a float32 vector can hold them."""
        return self not in (dtype.string, dtype.bytes)

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy's dtype of one element; for ``string`` and ``bytes`` that of one byte."""
        return _NUMPY_DTYPES[self]

    @property
    def item_size(self) -> int:
        """Bytes of one element; 1 for ``string`` and ``bytes``."""
        return _NUMPY_DTYPES[self].itemsize


_NUMPY_DTYPES: dict[dtype, np.dtype[Any]] = {
    dtype.float32: np.dtype("<f4"),
    dtype.float64: np.dtype("<f8"),
    dtype.int32: np.dtype("<i4"),
    dtype.int64: np.dtype("<i8"),
    dtype.uint8: np.dtype("u1"),
    dtype.bool: np.dtype("?"),
    dtype.string: np.dtype("u1"),
    dtype.bytes: np.dtype("u1"),
}


@dataclass(frozen=True)
class FeatureField:
    """One field of a row.

    ``shape`` is ``()`` for a scalar, ``(n, ...)`` for a fixed-shape array stored in the row, ``(None,)`` for a list of
    any length. ``default`` is what a null reads as in a float32 vector; NaN if left out.

    With ``history`` each row also keeps that many of the field's last values, with their event times: newest first, one
    for each event time at which the field was written, none up to the newest deletion, late rows included.
    :func:`quorin.assembly.read_last` reads them. It is for single numbers; a value takes 17 bytes of each row more than
    its type, or 25 with a tie-breaker.

    :raises SchemaError: (``ValueError``) for a bad name or shape, a default that is no number, or a history of text,
        lists or arrays.
    :raises SchemaTypeError: (``TypeError``) for a part of the wrong Python type.
    """

    name: str
    dtype: dtype
    shape: tuple[int | None, ...] = ()
    default: float | None = None
    history: int | None = None

    def __post_init__(self) -> None:
        _check_field_name(self.name)
        if not isinstance(self.dtype, dtype):
            raise SchemaTypeError(
                f"field {self.name!r}: dtype must be one of quorin.schema.dtype ({', '.join(d.name for d in dtype)}), "
                f"got {self.dtype!r}"
            )
        object.__setattr__(self, "shape", _checked_shape(self.name, self.dtype, self.shape))
        _check_default(self)
        _check_history(self)

    @cached_property
    def is_list(self) -> bool:
        """Whether values are lists of any length."""
        return self.shape == (None,)

    @cached_property
    def is_variable(self) -> bool:
        """Whether values live in heap cells because their size differs from row to row."""
        return self.is_list or not self.dtype.is_numeric

    @cached_property
    def element_count(self) -> int:
        """Elements of this field in the assembled float32 vector; 0 for variable-size fields, which are not
        in it.
        """
        return 0 if self.is_variable else math.prod(int(n or 0) for n in self.shape)

    @cached_property
    def byte_count(self) -> int:
        """Bytes of the field's values in a row; 0 for variable-size fields, whose values live in the heap."""
        return self.element_count * self.dtype.item_size

    @property
    def vector_default(self) -> np.float32:
        """What a null reads as in a float32 vector."""
        return np.float32(math.nan if self.default is None else self.default)


def _check_field_name(name: object) -> None:
    """Refuse a field name that is no identifier of at most 128 UTF-8 bytes, or that Quorin uses itself."""
    if not isinstance(name, str):
        raise SchemaTypeError(f"a field name must be a str, got {name!r}")
    if not _FIELD_NAME.match(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise SchemaError(
            f"field name {name!r}: expected letters, digits and '_', no leading digit, at most {MAX_NAME_BYTES} bytes"
        )
    if name in RESERVED_FIELD_NAMES:
        raise SchemaError(f"field name {name!r} is reserved; reserved are {sorted(RESERVED_FIELD_NAMES)}")


def _checked_shape(name: str, code: dtype, shape: object) -> tuple[int | None, ...]:
    if not isinstance(shape, (tuple, list)):
        raise SchemaTypeError(f"field {name!r}: shape must be a tuple, got {shape!r}")
    shape = tuple(shape)
    if shape == (None,) or shape == ():
        return shape
    if not code.is_numeric:
        raise SchemaError(f"field {name!r}: {code.name} takes shape () or (None,), got {shape!r}")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise SchemaError(
                f"field {name!r}: a shape holds whole numbers of 1 and more, or is (None,); got {shape!r}"
            )
    if math.prod(shape) > _MAX_ELEMENTS:
        raise SchemaError(f"field {name!r}: shape {shape!r} has over {_MAX_ELEMENTS} elements")
    return tuple(int(size) for size in shape)


def _check_default(field: FeatureField) -> None:
    if field.default is None:
        return
    if isinstance(field.default, bool) or not isinstance(field.default, (int, float, np.integer, np.floating)):
        raise SchemaTypeError(f"field {field.name!r}: default must be a number, got {field.default!r}")
    if field.is_variable:
        raise SchemaError(f"field {field.name!r}: a variable-size field is not in the vector, so it has no default")
    object.__setattr__(field, "default", float(field.default))


def _check_history(field: FeatureField) -> None:
    if field.history is None:
        return
    if isinstance(field.history, bool) or not isinstance(field.history, (int, np.integer)):
        raise SchemaTypeError(f"field {field.name!r}: history must be a whole number of values, got {field.history!r}")
    if not 1 <= field.history <= MAX_HISTORY:
        raise SchemaError(f"field {field.name!r}: a history has 1 to {MAX_HISTORY} values, got {field.history}")
    if field.shape or not field.dtype.is_numeric:
        kind = f"{field.dtype.name} of shape {field.shape}" if field.shape else field.dtype.name
        raise SchemaError(f"field {field.name!r}: only single numbers can keep a history, got {kind}")
    object.__setattr__(field, "history", int(field.history))


# Pickles, documentation and error messages name a class by the module that users import it from.
dtype.__module__ = FeatureField.__module__ = "quorin.schema"
