"""A process that finds a log closed: wait for the growth, and finish it if whoever began it does not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from quorin.engine.format.growth import Growth, State
from quorin.engine.repartition.run import go_on

if TYPE_CHECKING:
    from quorin.engine.backend import Backend

_LOOK_SECONDS = 0.01
_HELP_SECONDS = 1.0
"""After so long the process that began the growth counts as dead, or slow: taking its steps too does no harm."""


def settled(backend: Backend, deadline: float) -> bool:
    """Wait until no growth is under way, and forget how many partitions there were; False if the ``deadline``, on the
    monotonic clock, has passed.
    """
    began = time.monotonic()
    while Growth.parse(backend.control.growth()).state is not State.settled:
        now = time.monotonic()
        if now >= deadline:
            return False
        if now - began >= _HELP_SECONDS:
            go_on(backend)
        time.sleep(_LOOK_SECONDS)
    time.sleep(_LOOK_SECONDS)
    backend.forget_partitions()
    return time.monotonic() < deadline
