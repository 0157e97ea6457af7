"""The JSON of the most frequent response, one entity whose features are all numbers: values put into a template."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import orjson

from feast_quorin.server.json_times import NO_TIME, time_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_quorin.read.request import Column
    from feast_quorin.read.resolved import Resolved
    from feast_quorin.read.row_response import RowResponse

_PRESENT = b'"statuses":["PRESENT"],"event_timestamps":["%b"]'


def body(response: RowResponse) -> bytes | None:
    """The response as JSON; None if a feature has no value, or one that is no number of JSON."""
    read = response.numbers()
    if read is None or not all(map(isfinite, read.values)):
        return None
    resolved = read.resolved
    names = tuple(key.name for key in read.keys)
    template = resolved.row_templates.get(names)
    if template is None:
        template = resolved.row_templates[names] = _template(resolved, read.keys)
    times = [time_text(time).encode() for time in read.event_times_ns]
    texts = [orjson.dumps(key.json(values)) for key, values in zip(read.keys, read.key_values, strict=True)]
    numbers = orjson.dumps(read.values)[1:-1].split(b",")
    for number, feature in zip(numbers, resolved.features, strict=True):
        texts += number, times[feature.view]
    return template % tuple(texts)


def _template(resolved: Resolved, keys: Sequence[Column]) -> bytes:
    key = b'{"values":%b,' + _PRESENT % NO_TIME.encode() + b"}"
    columns = [key] * len(keys) + [b'{"values":[%b],' + _PRESENT + b"}"] * len(resolved.features)
    names = [key.name for key in keys] + [feature.name for feature in resolved.features]
    metadata = orjson.dumps({"feature_names": names}).replace(b"%", b"%%")
    return b'{"results":[' + b",".join(columns) + b'],"metadata":' + metadata + b"}"
