"""What a forked child does first with what it inherited: locks that it must not keep, state that it must renew.

The only module that registers hooks with ``os.register_at_fork``. They are installed with the first object or lock, so
importing installs nothing.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading


class Inherited(Protocol):
    """An object that a child must not use as its parent left it."""

    def after_fork_in_child(self) -> None:
        """Release or renew what only the parent may hold. No other thread runs; locks may be held by threads that are
        not in the child.
        """


def register(inherited: Inherited) -> None:
    """Call ``inherited.after_fork_in_child()`` in every child forked from now on, as long as the object is alive."""
    global _is_installed
    _alive.add(inherited)
    if not _is_installed:
        _is_installed = True
        os.register_at_fork(after_in_child=_after_fork_in_child)


def unregister(inherited: Inherited) -> None:
    """Forget an object. Does nothing if it is not registered."""
    _alive.discard(inherited)


def hold_during_forks(lock: threading.RLock) -> None:
    """Fork only while the forking thread has ``lock``, so that no child inherits it, or what it guards, from a thread
    that the child has not. A fork waits for the thread that has it. For the life of the process.
    """
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def _after_fork_in_child() -> None:
    for inherited in list(_alive):
        inherited.after_fork_in_child()


_alive: weakref.WeakSet[Inherited] = weakref.WeakSet()
_is_installed = False
