"""The categories of one column, and the codes that a model was trained with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.format.abi import T_CODE, T_HEAD_ITEMS, T_KEY, T_KEY_BYTES, T_SLOT_ITEMS
from quorin.engine.format.hashing import hash_bytes
from quorin.errors import InvalidRowError
from quorin.schema import dtype

if TYPE_CHECKING:
    from quorin.engine.arrays import Int64s
    from quorin.schema import FeatureField

ERROR = "error"
_MAX_SHOWN = 10
_MIN_SLOTS = 2
_INT64 = (-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class Categories:
    """Codes by text or integer; ``unknown`` is the code of all others, None if they are an error."""

    codes: dict[str | int, float]
    unknown: float | None

    @classmethod
    def of(cls, column: str, field: FeatureField, given: Any, unknown: Any) -> Categories:
        """Check what a caller passes: values in the order of their codes, or codes by value.

        :raises InvalidRowError: for no categories, a value of another type than the field's, or one that occurs twice.
        """
        is_text = field.dtype is dtype.string
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise InvalidRowError(f"categories: column {column!r}: expected a list or a dict, got {given!r}")
        pairs = list(given.items()) if isinstance(given, Mapping) else [(v, i) for i, v in enumerate(given)]
        codes: dict[str | int, float] = {}
        for value, code in pairs:
            key = _key(value, is_text=is_text)
            if key is None:
                kind = "texts" if is_text else "integers of 64 bits"
                raise InvalidRowError(f"categories: column {column!r}: expected {kind}, got {value!r}")
            if key in codes:
                raise InvalidRowError(f"categories: column {column!r}: {value!r} occurs twice")
            codes[key] = _code(column, code)
        if not codes:
            raise InvalidRowError(f"categories: column {column!r} has none")
        return cls(codes, None if isinstance(unknown, str) and unknown == ERROR else _code(column, unknown))

    def table(self, first_key: int) -> tuple[Int64s, bytes]:
        """The hash table as :mod:`quorin.engine.format.abi` lays it out, and the bytes of its keys, which will begin at
        ``first_key`` among those of all columns.
        """
        slot_count = _MIN_SLOTS
        while slot_count < 2 * len(self.codes):
            slot_count *= 2
        slots = np.zeros((slot_count, T_SLOT_ITEMS), np.int64)
        slots[:, T_KEY_BYTES] = -1
        keys = bytearray()
        for value, code in self.codes.items():
            key = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
            slot = hash_bytes(key) & (slot_count - 1)
            while slots[slot, T_KEY_BYTES] >= 0:
                slot = (slot + 1) & (slot_count - 1)
            slots[slot, [T_KEY, T_KEY_BYTES, T_CODE]] = first_key + len(keys), len(key), _bits(code)
            keys += key
        head = [slot_count, _bits(math.nan if self.unknown is None else self.unknown), self.unknown is None]
        return np.concatenate([np.array(head[:T_HEAD_ITEMS], np.int64), slots.ravel()]), bytes(keys)

    def shown(self) -> str:
        """The first of the categories, for error texts."""
        first = [*self.codes][:_MAX_SHOWN]
        more = len(self.codes) - len(first)
        return ", ".join(map(repr, first)) + (f" and {more:,} more" if more else "")


def _key(value: Any, *, is_text: bool) -> str | int | None:
    """A category as Python has it; None for one that such a field cannot hold."""
    value = value.item() if isinstance(value, np.generic) else value
    if is_text:
        return value if isinstance(value, str) else None
    if isinstance(value, float) and value.is_integer():  # Of integers beside missing ones, as pandas keeps them.
        value = int(value)
    return int(value) if isinstance(value, int) and _INT64[0] <= value <= _INT64[1] else None


def _code(column: str, code: Any) -> float:
    if isinstance(code, bool) or not isinstance(code, (int, float, np.integer, np.floating)):
        raise InvalidRowError(
            f"column {column!r}: expected a number as the code of a category, and {ERROR!r} or a number for unknown "
            f"ones, got {code!r}"
        )
    return float(code)


def _bits(number: float) -> int:
    return int(np.float64(number).view(np.int64))
