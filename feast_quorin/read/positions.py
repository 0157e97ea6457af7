"""The log positions of the rows of a response that Feast's own path makes: collected while it reads view by view."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

Positions = dict[str, Any]
"""By name of a view in the request, int64 of shape ``(rows,)``: -1 where the entity has no row."""

_COLLECTED: ContextVar[Positions | None] = ContextVar("feast_quorin_positions", default=None)


@contextmanager
def collecting() -> Iterator[Positions]:
    """Collect the positions of the views that are read in a ``with`` block, in the order of the request's rows."""
    positions: Positions = {}
    before = _COLLECTED.set(positions)
    try:
        yield positions
    finally:
        _COLLECTED.reset(before)


def add(view: str, positions: Any, found: Any) -> None:
    """Note the positions of a view's rows, int64, and which were found."""
    collected = _COLLECTED.get()
    if collected is not None:
        collected[view] = only_found(positions, found)


def only_found(positions: Any, found: Any) -> Any:
    """A copy of positions with -1 where not found."""
    return np.where(found, positions, -1)
