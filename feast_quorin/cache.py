"""Bounded caches: of results that are cheap to compute again, and of what is to be released when it is idle."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import ref

Key = TypeVar("Key")
Value = TypeVar("Value")


class BoundedCache(dict[Key, Value]):
    """A dictionary of at most ``max_entries``. Adding a key to a full one clears it first.

    A lookup costs as much as a dictionary's. Threads may share it.
    """

    __slots__ = ("max_entries",)

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self.max_entries = max_entries

    def __setitem__(self, key: Key, value: Value) -> None:
        if len(self) >= self.max_entries and key not in self:
            self.clear()
        super().__setitem__(key, value)


class IdleCache(Generic[Key, Value]):
    """At most ``max_entries`` values, the most recently used; one that is not used for ``idle_seconds`` is dropped.

    Threads may share it. It has a thread of its own while it has entries.
    """

    def __init__(self, max_entries: int, idle_seconds: float) -> None:
        self._max_entries = max_entries
        self._idle_seconds = idle_seconds
        self._entries: OrderedDict[Key, tuple[Value, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._is_dropping = False

    def get(self, key: Key, is_valid: Callable[[Value], bool], make: Callable[[Key], Value]) -> Value:
        """The value of a key, made anew if there is none, or no valid one."""
        with self._lock:
            found = self._entries.get(key)
            value = make(key) if found is None or not is_valid(found[0]) else found[0]
            self._entries[key] = value, time.monotonic()
            self._entries.move_to_end(key)
            dropped = self._entries.popitem(last=False) if len(self._entries) > self._max_entries else None
            if not self._is_dropping:
                self._is_dropping = True
                # The thread must not refer to this object, so that it and its values end with whoever has them.
                threading.Thread(target=_keep_dropping, args=(ref(self),), name="quorin-idle", daemon=True).start()
        del dropped, found  # Outside the lock: what ends with a value may take its time.
        return value

    def clear(self) -> list[Value]:
        """Drop all, and return them."""
        with self._lock:
            entries, self._entries = self._entries, OrderedDict()
        return [value for value, _ in entries.values()]

    def drop_idle(self, idle_seconds: float) -> float | None:
        """Drop what was not used for so long; returns the seconds until there may be more, None if nothing is left."""
        dropped = []
        with self._lock:
            now = time.monotonic()
            while self._entries:
                key, (value, used) = next(iter(self._entries.items()))
                if used + idle_seconds > now:
                    return used + idle_seconds - now
                dropped.append(value)
                del self._entries[key]
        return None

    def drop_next(self) -> float | None:
        """Drop what is idle now; returns the seconds until there may be more. None if nothing is left: then the thread
        ends.
        """
        while (seconds := self.drop_idle(self._idle_seconds)) is None:
            with self._lock:
                if not self._entries:
                    self._is_dropping = False
                    return None
        return seconds


def _keep_dropping(reference: ref[IdleCache[Any, Any]]) -> None:
    while (cache := reference()) is not None:
        seconds = cache.drop_next()
        del cache
        if seconds is None:
            return
        time.sleep(seconds)
