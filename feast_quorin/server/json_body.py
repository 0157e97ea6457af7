"""Responses as the JSON of Feast's feature server, written from columns instead of protobuf."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from feast.feature_server_utils import convert_response_to_dict

from feast_quorin.read.response import LazyResponse
from quorin.assembly import OneRow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from feast_quorin.read.response import Vector
    from quorin.assembly import Columns

CONTENT_TYPE = b"application/json"
_SECOND_NS = 1_000_000_000
_NO_TIME = "1970-01-01T00:00:00Z"
_MAX_COUNTS = 256
_MAX_TIMES = 4096
_MANY_ROWS = 1_000


def body(response: Any) -> bytes:
    """What ``convert_response_to_dict`` of Feast makes of the response's protobuf, as JSON."""
    vectors = response.json_vectors() if isinstance(response, LazyResponse) else None
    if vectors is None:
        return orjson.dumps(convert_response_to_dict(response.proto))
    return _written(vectors)


def _written(vectors: Iterable[Vector]) -> bytes:
    states: dict[int, dict[str, Any]] = {}
    names, results = [], []
    for name, values, read in vectors:
        names.append(name)
        state = states.get(id(read))
        if state is None:
            state = states[id(read)] = _present(len(values)) if read is None else _state(read)
        # Long columns each by themselves: one call for all of them would hold the interpreter's lock for long.
        results.append({"values": _fragment(values) if len(values) > _MANY_ROWS else values, **state})
    return orjson.dumps({"results": results, "metadata": {"feature_names": names}}, option=orjson.OPT_SERIALIZE_NUMPY)


def _state(read: OneRow | Columns) -> dict[str, Any]:
    """Statuses and event times, which all features of a view share."""
    if not isinstance(read, OneRow):
        return _states(read)
    return _one_state(read.values[0]) if read.values else _NOT_FOUND


def _states(columns: Columns) -> dict[str, Any]:
    times = _fragment(_times(columns.event_time_ns))
    if columns.hidden is None and columns.all_found:
        return {"statuses": _same("PRESENT", len(columns.found)), "event_timestamps": times}
    statuses = np.where(columns.found, "PRESENT", "NOT_FOUND").astype("U15")
    if columns.hidden is not None:
        statuses[columns.hidden] = "OUTSIDE_MAX_AGE"
    return {"statuses": _fragment(statuses.tolist()), "event_timestamps": times}


@lru_cache(maxsize=_MAX_TIMES)
def _one_state(time_ns: int) -> dict[str, Any]:
    times = _times(np.array([time_ns], np.int64))
    return {"statuses": _same("PRESENT", 1), "event_timestamps": _fragment(times)}


@lru_cache(maxsize=_MAX_COUNTS)
def _present(count: int) -> dict[str, Any]:
    return {"statuses": _same("PRESENT", count), "event_timestamps": _same(_NO_TIME, count)}


@lru_cache(maxsize=_MAX_COUNTS)
def _same(text: str, count: int) -> orjson.Fragment:
    return _fragment([text] * count)


def _fragment(values: Any) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))


def _times(times_ns: Any) -> list[str]:
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


_NOT_FOUND = {"statuses": _same("NOT_FOUND", 1), "event_timestamps": _same(_NO_TIME, 1)}
