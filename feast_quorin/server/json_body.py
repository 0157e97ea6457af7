"""Responses as the JSON of Feast's feature server, written from columns instead of protobuf."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from feast.feature_server_utils import convert_response_to_dict

from feast_quorin.read.response import LazyResponse
from feast_quorin.read.row_response import RowResponse
from feast_quorin.server import json_row
from feast_quorin.server.json_times import NO_TIME, time_text, times
from quorin.assembly import OneRow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from feast_quorin.read.response import Vector
    from quorin.assembly import Columns

CONTENT_TYPE = b"application/json"
_MAX_COUNTS = 256
_MANY_ROWS = 1_000


def body(response: Any, *, positions: bool = False) -> bytes:
    """What ``convert_response_to_dict`` of Feast makes of the response's protobuf, as JSON. With ``positions`` it has
    one more key of that name: for each view a list, null where the entity has no row.
    """
    written = _body(response)
    if not positions:
        return written
    return written[:-1] + b',"positions":' + orjson.dumps(response.positions()) + b"}"


def _body(response: Any) -> bytes:
    if isinstance(response, RowResponse):
        row = json_row.body(response)
        if row is not None:
            return row
    vectors = response.json_vectors() if isinstance(response, LazyResponse) else None
    if vectors is None:
        return orjson.dumps(convert_response_to_dict(response.proto))
    return _written(vectors)


def _written(vectors: Iterable[Vector]) -> bytes:
    states: dict[tuple[int, int], dict[str, Any]] = {}
    names, results = [], []
    for name, values, read, index in vectors:
        names.append(name)
        key = id(read), 0 if read is None else read.age_limit(index)
        state = states.get(key)
        if state is None:
            state = states[key] = _present(len(values)) if read is None else _state(read, index)
        # Long columns each by themselves: one call for all of them would hold the interpreter's lock for long.
        results.append({"values": _fragment(values) if len(values) > _MANY_ROWS else values, **state})
    return orjson.dumps({"results": results, "metadata": {"feature_names": names}}, option=orjson.OPT_SERIALIZE_NUMPY)


def _state(read: OneRow | Columns, index: int) -> dict[str, Any]:
    """Statuses and event times, which the features of a view with the same age limit share."""
    if not isinstance(read, OneRow):
        return _states(read, index)
    if not read.values:
        return _NOT_FOUND
    status = _same("OUTSIDE_MAX_AGE" if read.is_outdated(index) else "PRESENT", 1)
    return {"statuses": status, "event_timestamps": [time_text(read.values[0])]}


def _states(columns: Columns, index: int) -> dict[str, Any]:
    event_times, outdated = _fragment(times(columns.event_time_ns)), columns.outdated(index)
    if outdated is None and columns.all_found:
        return {"statuses": _same("PRESENT", len(columns.found)), "event_timestamps": event_times}
    statuses = np.where(columns.found, "PRESENT", "NOT_FOUND").astype("U15")
    if outdated is not None:
        statuses[outdated] = "OUTSIDE_MAX_AGE"
    return {"statuses": _fragment(statuses.tolist()), "event_timestamps": event_times}


@lru_cache(maxsize=_MAX_COUNTS)
def _present(count: int) -> dict[str, Any]:
    return {"statuses": _same("PRESENT", count), "event_timestamps": _same(NO_TIME, count)}


@lru_cache(maxsize=_MAX_COUNTS)
def _same(text: str, count: int) -> orjson.Fragment:
    return _fragment([text] * count)


def _fragment(values: Any) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))


_NOT_FOUND = {"statuses": _same("NOT_FOUND", 1), "event_timestamps": _same(NO_TIME, 1)}
