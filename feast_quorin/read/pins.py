"""Pins of requests: by feature view, the generation that they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quorin.errors import InvalidPinError
from quorin.shm import check_pin

Generations = tuple[tuple[str, int | str], ...]
"""By view, the number of a generation, or a version of the schema (``"v3"``); sorted."""


class Pins:
    """What the requests of one ``with`` block, or one request over HTTP, are pinned to.

    ``held`` has what they read from, by what it was made of: a pin lasts at least as long as this object.
    """

    __slots__ = ("generations", "held")

    def __init__(self, generations: Generations) -> None:
        self.generations = generations
        self.held: dict[Any, Any] = {}


def checked_pin(pin: Any) -> Any:
    """What a setting pins: one generation, or by name. :raises InvalidPinError: naming what was expected."""
    return {name: checked_pin(one) for name, one in pin.items()} if isinstance(pin, dict) else check_pin(pin)


def pins_of(pins: Any) -> Pins:
    """Pins from a mapping of views to generations.

    ``current`` is not among them: it is another generation for each request, unless something stays open between them.

    :raises InvalidPinError: naming what is wrong.
    """
    if not isinstance(pins, Mapping) or not pins:
        raise InvalidPinError(f"pin: expected generations by feature view, such as {{'prices': 6}}, got {pins!r}")
    found = {}
    for view, generation in pins.items():
        if not isinstance(view, str) or not view:
            raise InvalidPinError(f"pin: expected the names of feature views, got {view!r}")
        try:
            found[view] = check_pin(generation)
        except InvalidPinError as error:
            raise InvalidPinError(f"pin[{view!r}]: {error}") from None
        if found[view] == "current":
            raise InvalidPinError(f"pin[{view!r}]: expected a generation such as 17, or a schema version such as 'v3'")
    return Pins(tuple(sorted(found.items())))
