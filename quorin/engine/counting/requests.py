"""What servers count of requests: by path and way, each pair in a slot of its own, and refusals.

The way of a request is ``short`` if the function of a path answered it in the call that received it, and
``application`` if an ASGI application did, or if other nodes were waited for.
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
        counters.own_words(self._slot)  # So that its series exist before the first request.

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


def is_request(name: str) -> bool:
    """Whether a slot of this name counts requests."""
    return name.startswith(f"{_PREFIX} ")


def is_schema(name: str) -> bool:
    """Whether a slot of this name counts for a schema."""
    return name not in (counters.EVERYWHERE, counters.UNKNOWN) and not is_request(name)


def paths(totals: dict[str, UInt64s]) -> list[tuple[str, str, UInt64s]]:
    """Path, way and words of the slots of requests."""
    return [(*_labels(name), words) for name, words in sorted(totals.items()) if is_request(name)]


def in_flight() -> dict[str, int]:
    """The requests that applications are answering at this moment, by path."""
    sums: dict[str, int] = {}
    for name, count in sorted(counters.live_totals(_IN_FLIGHT, is_request).items()):
        path, way = _labels(name)
        if way == APPLICATION:
            sums[path] = sums.get(path, 0) + count
    return sums


def _labels(name: str) -> tuple[str, str]:
    _, way, path = name.split(" ", 2)
    return path, way
