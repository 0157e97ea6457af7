"""The log positions of the rows of a response that Feast's own path makes: collected while it reads view by view."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Positions = dict[str, list[int | None]]
"""By name of a view in the request, for each of its rows: None where the entity has no row."""

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


def add(view: str, positions: list[int | None]) -> None:
    """Note the positions of a view's rows."""
    collected = _COLLECTED.get()
    if collected is not None:
        collected[view] = positions
