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
    event_times = _fragment(times(columns.event_time_ns))
    if columns.hidden is None and columns.all_found:
        return {"statuses": _same("PRESENT", len(columns.found)), "event_timestamps": event_times}
    statuses = np.where(columns.found, "PRESENT", "NOT_FOUND").astype("U15")
    if columns.hidden is not None:
        statuses[columns.hidden] = "OUTSIDE_MAX_AGE"
    return {"statuses": _fragment(statuses.tolist()), "event_timestamps": event_times}


def _one_state(time_ns: int) -> dict[str, Any]:
    return {"statuses": _same("PRESENT", 1), "event_timestamps": [time_text(time_ns)]}


@lru_cache(maxsize=_MAX_COUNTS)
def _present(count: int) -> dict[str, Any]:
    return {"statuses": _same("PRESENT", count), "event_timestamps": _same(NO_TIME, count)}


@lru_cache(maxsize=_MAX_COUNTS)
def _same(text: str, count: int) -> orjson.Fragment:
    return _fragment([text] * count)


def _fragment(values: Any) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))


_NOT_FOUND = {"statuses": _same("NOT_FOUND", 1), "event_timestamps": _same(NO_TIME, 1)}
