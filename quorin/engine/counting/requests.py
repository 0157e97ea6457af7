"""What servers count of requests: by path and way, each pair in a slot of its own, and refusals.

The way of a request is ``short`` if the function of a path answered it in the call that received it, and
``application`` if an ASGI application did.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from quorin.engine.counting import counters

if TYPE_CHECKING:
    from quorin.engine.arrays import UInt64s

SHORT, APPLICATION = "short", "application"
_PREFIX = "http"
"""Slots of requests are named ``http <way> <path>``; no schema's name has a space."""

_BOUNDS_NS = tuple(round(bound * 1e9) for bound in counters.REQUEST_BOUNDS)
_STATUSES = counters.word("requests.2xx") - 2
_ROWS, _FEATURES = counters.word("request_rows"), counters.word("request_features")
_TIME, _TIMES = counters.word("request_ns"), counters.word("request_time.0")
_IN_FLIGHT = counters.word("requests_in_flight")
_REFUSED = {reason: counters.word(f"requests_refused.{reason}") for reason in counters.REFUSAL_REASONS}


class PathCounter:
    """Counts the requests of one path and way, for the thread of the event loop."""

    __slots__ = ("_in_flight", "_slot")

    def __init__(self, path: str, way: str) -> None:
        self._slot = f"{_PREFIX} {way} {path}"
        self._in_flight = 0

    def begin(self) -> None:
        """A request is in flight until :meth:`end`."""
        self._in_flight += 1
        counters.own_words(self._slot)[_IN_FLIGHT] = self._in_flight

    def end(self) -> None:
        """A request is in flight no more."""
        self._in_flight -= 1
        counters.own_words(self._slot)[_IN_FLIGHT] = self._in_flight

    def count(self, status: int, rows: int, features: int, elapsed_ns: int) -> None:
        """A request was answered."""
        words = counters.own_words(self._slot)
        words[_STATUSES + min(max(status // 100, 2), 5)] += 1  # An application may send any number.
        words[_TIMES + bisect_left(_BOUNDS_NS, elapsed_ns)] += 1
        words[_TIME] += elapsed_ns
        if rows:
            words[_ROWS] += rows
            words[_FEATURES] += features


def count_refused(reason: str) -> None:
    """A request was refused for one of :data:`counters.REFUSAL_REASONS`."""
    counters.add(counters.EVERYWHERE, _REFUSED[reason])


def paths(totals: dict[str, UInt64s]) -> list[tuple[str, str, UInt64s]]:
    """Path, way and words of the slots of requests."""
    return [(*labels, words) for name, words in sorted(totals.items()) if (labels := _labels(name))]


def in_flight() -> dict[str, int]:
    """The requests that applications are answering at this moment, by path."""
    sums: dict[str, int] = {}
    for name, count in sorted(counters.live_totals(_IN_FLIGHT).items()):
        if (labels := _labels(name)) and labels[1] == APPLICATION:
            sums[labels[0]] = sums.get(labels[0], 0) + count
    return sums


def _labels(name: str) -> tuple[str, str] | None:
    prefix, _, rest = name.partition(" ")
    way, _, path = rest.partition(" ")
    return (path, way) if prefix == _PREFIX and path else None
