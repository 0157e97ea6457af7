"""Errors that name the view, the row and the entity of an invalid value.

Columns are converted whole, and conversions rarely say which row they failed on. So a column that fails is converted
again in parts, by bisection, to find the first row that fails. Only errors pay for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from quorin.errors import InvalidRowError, QuorinError

Result = TypeVar("Result")

MAX_SHOWN = 100
"""Characters of a value that an error text shows."""

REFUSALS = (ValueError, TypeError, AssertionError, OverflowError, pa.ArrowException)
"""The errors of Arrow, Feast's conversions, Python and Quorin for a value that does not fit."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of some columns, as error texts name them.

    ``keys(i)`` returns the join keys and values of row ``i`` of a column; ``number(i)`` returns that row's number in
    the caller's input, from 0.
    """

    view: str
    keys: Callable[[int], Mapping[str, Any]]
    number: Callable[[int], int] = int

    def convert(self, what: str, column: Any, action: Callable[[Any], Result]) -> Result:
        """``action(column)``, for a column that can be sliced. ``what`` names the column, such as ``feature 'n'``; it
        is empty if the errors of ``action`` do so.

        :raises InvalidRowError: (or the subclass of ``QuorinError`` that ``action`` raised) for the first row that
            ``action`` refuses; the text has view, row, join keys, ``what`` and the reason.
        """
        try:
            return action(column)
        except REFUSALS as error:
            row = first_refused(column, action)
            raise self._named(what, row, reason(column, row, action) or error) from None

    def _named(self, what: str, row: int, error: BaseException) -> Exception:
        kind = type(error) if isinstance(error, QuorinError) else InvalidRowError
        keys = ", ".join(f"{name}={value!r:.{MAX_SHOWN}}" for name, value in self.keys(row).items())
        entity = f" ({keys})" if keys else ""
        name = f", {what}" if what else ""
        return kind(f"view {self.view!r}, row {self.number(row)}{entity}{name}: {error}")


def first_refused(column: Any, action: Callable[[Any], Any]) -> int:
    """The first row that an action refuses, if it refuses the column."""
    fits, refused = 0, len(column)
    while refused - fits > 1:
        middle = (fits + refused) // 2
        if _refusal(column[:middle], action) is None:
            fits = middle
        else:
            refused = middle
    return max(0, refused - 1)


def reason(column: Any, row: int, action: Callable[[Any], Any]) -> BaseException | None:
    """The error of an action for one row; None if it refuses the row only together with others."""
    return _refusal(column[row : row + 1], action)


def _refusal(column: Any, action: Callable[[Any], Any]) -> BaseException | None:
    try:
        action(column)
    except REFUSALS as error:
        return error
    return None
