"""Event times as Feast's feature server writes them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

NO_TIME = "1970-01-01T00:00:00Z"
"""The time of what has none."""

_SECOND_NS = 1_000_000_000
_MAX_TIMES = 4096


@lru_cache(maxsize=_MAX_TIMES)
def time_text(time_ns: int) -> str:
    """:func:`times` of one time."""
    return times(np.array([time_ns], np.int64))[0]


def times(times_ns: Any) -> list[str]:
    """Nanoseconds since the epoch in the form of RFC 3339, with as few of 0, 3, 6 or 9 digits as each needs."""
    seconds, nanos = np.divmod(times_ns, _SECOND_NS)
    texts: list[str] = np.datetime_as_string(seconds.astype("datetime64[s]")).tolist()
    if not nanos.any():
        return [text + "Z" for text in texts]
    return [text + _fraction(number) for text, number in zip(texts, nanos.tolist(), strict=True)]


def _fraction(nanos: int) -> str:
    if nanos % 1_000:
        return f".{nanos:09d}Z"
    if nanos % 1_000_000:
        return f".{nanos // 1_000:06d}Z"
    return f".{nanos // 1_000_000:03d}Z" if nanos else "Z"
