"""What a process does last when it exits normally, so that the next one has nothing to repair.

A process exits normally at the end of its program, at ``sys.exit``, and after an exception that nothing caught. Signals
without a handler and ``os._exit`` are crashes. Children of :mod:`multiprocessing` end with ``os._exit`` as well, but
run that module's finalizers before. The hooks are installed with the first object, so importing installs nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol


class ExitHook(Protocol):
    """An object that puts something in order when its process exits."""

    def at_exit(self) -> None:
        """Put it in order; daemon threads may still run."""


def register(hook: ExitHook) -> None:
    """Call ``hook.at_exit()`` when this process exits, as long as the object is alive."""
    global _installed_in
    _alive.add(hook)
    if _installed_in != os.getpid():
        if _installed_in is None:
            atexit.register(_run_hooks)  # A forked child inherits it.
        _installed_in = os.getpid()
        finalizers = sys.modules.get("multiprocessing.util")  # Imported in every child of multiprocessing.
        if finalizers is not None:
            finalizers.Finalize(None, _run_hooks, exitpriority=0)  # A child inherits none.


def unregister(hook: ExitHook) -> None:
    """Forget an object. Does nothing if it is not registered."""
    _alive.discard(hook)


def _run_hooks() -> None:
    for hook in list(_alive):
        hook.at_exit()


_alive: weakref.WeakSet[ExitHook] = weakref.WeakSet()
_installed_in: int | None = None
"""The id of the process in which the hooks are installed."""
