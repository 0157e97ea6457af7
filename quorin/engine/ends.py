"""What a process does last when it ends normally, so that the next one has nothing to repair.

A process ends normally at the end of its program, at ``sys.exit``, and after an exception that nothing caught. Signals
without a handler and ``os._exit`` are crashes. Children of :mod:`multiprocessing` end with ``os._exit`` as well, but
run that module's finalizers before. The hooks are installed with the first object, so importing installs nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol


class Ending(Protocol):
    """An object that has something to leave in order."""

    def at_end(self) -> None:
        """Leave it in order; daemon threads may still run."""


def register(ending: Ending) -> None:
    """Call ``ending.at_end()`` when this process ends, as long as the object is alive."""
    global _installed_in
    _alive.add(ending)
    if _installed_in != os.getpid():
        if _installed_in is None:
            atexit.register(_end)  # A forked child inherits it.
        _installed_in = os.getpid()
        finalizers = sys.modules.get("multiprocessing.util")  # Imported in every child of multiprocessing.
        if finalizers is not None:
            finalizers.Finalize(None, _end, exitpriority=0)  # A child inherits none.


def unregister(ending: Ending) -> None:
    """Forget an object. Does nothing if it is not registered."""
    _alive.discard(ending)


def _end() -> None:
    for ending in list(_alive):
        ending.at_end()


_alive: weakref.WeakSet[Ending] = weakref.WeakSet()
_installed_in: int | None = None
"""The id of the process in which the hooks are installed."""
