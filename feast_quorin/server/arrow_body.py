"""Responses as a stream of Arrow's IPC format: one record batch, with the columns of the JSON in their stored types.

Statuses and event times are columns of their own, once for each view: ``<view>__status`` and
``<view>__event_timestamp``. If features of a view have different age limits, those with one are ``<view>__<seconds>s``
there. The metadata of a feature's field names both columns as ``status`` and ``event_timestamp``; join keys and
computed features, which are always present, have neither. Log positions, if asked for, follow these as
``<view>__position``. The metadata of the schema is for :mod:`feast_quorin.remote.response`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_quorin.read.response import LazyResponse
from feast_quorin.remote import messages

if TYPE_CHECKING:
    from feast_quorin.read.response import ArrowVector
    from quorin.assembly import Columns

CONTENT_TYPE = messages.CONTENT_TYPE.encode()
_STATUSES = pa.array(["PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE"])
_STATUS_TYPE = pa.dictionary(pa.int8(), pa.string())
_TIME_TYPE = pa.timestamp("ns", "UTC")
_MAX_SCHEMAS = 256


def body(response: Any, *, positions: bool = False) -> bytes:
    """The response as one record batch. One that only Feast's protobuf has all of is what ``to_arrow`` returns."""
    exact = exact_body(response, positions=positions)
    return messages.encoded(_as_table(response, positions=positions)) if exact is None else exact


def exact_body(response: Any, *, positions: bool = False) -> bytes | None:
    """The response as one record batch that a remote store makes the same response of; None if that cannot be."""
    found = response.arrow_vectors() if isinstance(response, LazyResponse) else None
    if found is None:
        return None
    vectors = [*found]
    columns = [vector.column for vector in vectors]
    groups = _groups(response, vectors)
    for view, index in groups.values():
        _, read = response.view_columns(view)
        columns += _statuses(read, index), pa.array(read.event_time_ns, _TIME_TYPE, mask=~read.found)
    views = _views(response, vectors) if positions else {}
    for view in views.values():
        _, read = response.view_columns(view)
        columns.append(pa.array(read.positions, pa.int64(), mask=~read.found))
    return messages.encoded(pa.record_batch(columns, schema=_schema(response, vectors, [*groups], [*views])))


def _views(response: LazyResponse, vectors: list[ArrowVector]) -> dict[str, int]:
    """The views of the features, by name."""
    return {response.view_columns(view)[0]: view for view in dict.fromkeys(v.view for v in vectors) if view >= 0}


def _groups(response: LazyResponse, vectors: list[ArrowVector]) -> dict[str, tuple[int, int]]:
    """What shares statuses and times: the features of a view with the same age limit. By name, the view and the index
    of one of its features.
    """
    groups: dict[str, tuple[int, int]] = {}
    for vector in vectors:
        if vector.view >= 0:
            groups.setdefault(_group(response, vector), (vector.view, vector.at))
    return groups


def _group(response: LazyResponse, vector: ArrowVector) -> str:
    name, read = response.view_columns(vector.view)
    limit = read.age_limit(vector.at)
    is_split = limit > 0 and len({*(read.ages or ())}) > 1
    return f"{name}__{limit / 1e9:.15g}s" if is_split else name


def _schema(response: LazyResponse, vectors: list[ArrowVector], groups: list[str], positions: list[str]) -> pa.Schema:
    """The schema, which is the same for all responses with the same join keys and types of computed features."""
    schemas = response.resolved.arrow_schemas
    known = bool(positions), *((vector.kind, vector.name, vector.value_type) for vector in vectors if vector.view < 0)
    schema = schemas.get(known)
    if schema is None:
        if len(schemas) >= _MAX_SCHEMAS:
            schemas.clear()
        schema = schemas[known] = _new_schema(response, vectors, groups, positions)
    return schema


def _new_schema(
    response: LazyResponse, vectors: list[ArrowVector], groups: list[str], positions: list[str]
) -> pa.Schema:
    fields: list[pa.Field] = []
    described: list[list[Any]] = []
    for vector in vectors:
        metadata, name = None, vector.name
        described.append([vector.kind, name, vector.value_type.name])
        if vector.view >= 0:
            group = _group(response, vector)
            metadata = {"status": f"{group}__status", "event_timestamp": f"{group}__event_timestamp"}
            described[-1] += groups.index(group), response.vector_length(name)
        fields.append(pa.field(name, vector.column.type, metadata=metadata))
    for name in groups:
        fields += pa.field(f"{name}__status", _STATUS_TYPE), pa.field(f"{name}__event_timestamp", _TIME_TYPE)
    fields += (pa.field(f"{name}__position", pa.int64()) for name in positions)
    about = {"columns": described, "versions": response.resolved.versions, "positions": positions}
    return pa.schema(fields, metadata={messages.METADATA: json.dumps(about)})


def _statuses(read: Columns, index: int) -> pa.Array:
    codes, outdated = np.where(read.found, 0, 1).astype(np.int8), read.outdated(index)
    if outdated is not None:
        codes[outdated] = 2
    return pa.DictionaryArray.from_arrays(codes, _STATUSES)


def _as_table(response: Any, *, positions: bool) -> pa.RecordBatch:
    table = response.to_arrow(positions=positions).combine_chunks()
    columns = [column.combine_chunks() for column in table.columns]
    return pa.record_batch(columns, schema=table.schema)
