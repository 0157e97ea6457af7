"""How fast bytes are copied and sent, so that reads beside it stay quick."""

from __future__ import annotations

import threading
import time

from quorin.errors import QuorinError


class StoppedError(QuorinError, RuntimeError):
    """What was going on was asked to stop."""


class Pace:
    """At most ``bytes_per_second`` (0: no limit) on average, until ``stopping`` is set."""

    def __init__(self, bytes_per_second: float = 0, stopping: threading.Event | None = None) -> None:
        self._rate = bytes_per_second
        self._stopping = threading.Event() if stopping is None else stopping
        self._free_at = time.monotonic()

    def spend(self, size: int) -> None:
        """Wait until ``size`` more bytes are within the rate. :raises StoppedError: when it is time to stop."""
        delay = 0.0
        if self._rate:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            delay = self._free_at - now
        if self._stopping.wait(delay):
            raise StoppedError("stopped before all bytes were copied")
