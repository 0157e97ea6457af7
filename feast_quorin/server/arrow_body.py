"""Responses as a stream of Arrow's IPC format: one record batch, with the columns of the JSON in their stored types.

Statuses and event times are columns of their own, once for each view: ``<view>__status`` and
``<view>__event_timestamp``. The metadata of a feature's field names them as ``status`` and ``event_timestamp``; join
keys and computed features, which are always present, have neither. Log positions, if asked for, follow these as
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
    order = dict.fromkeys([vector.view for vector in vectors if vector.view >= 0])
    views = {view: response.view_columns(view) for view in order}
    for _, read in views.values():
        columns += _statuses(read), pa.array(read.event_time_ns, _TIME_TYPE, mask=~read.found)
    if positions:
        columns += (pa.array(read.positions, pa.int64(), mask=~read.found) for _, read in views.values())
    names = {view: name for view, (name, _) in views.items()}
    return messages.encoded(pa.record_batch(columns, schema=_schema(response, vectors, names, positions=positions)))


def _schema(response: LazyResponse, vectors: list[ArrowVector], views: dict[int, str], *, positions: bool) -> pa.Schema:
    """The schema, which is the same for all responses with the same join keys and types of computed features."""
    schemas = response.resolved.arrow_schemas
    known = positions, *((vector.kind, vector.name, vector.value_type) for vector in vectors if vector.view < 0)
    schema = schemas.get(known)
    if schema is None:
        if len(schemas) >= _MAX_SCHEMAS:
            schemas.clear()
        schema = schemas[known] = _new_schema(response, vectors, views, positions=positions)
    return schema


def _new_schema(
    response: LazyResponse, vectors: list[ArrowVector], views: dict[int, str], *, positions: bool
) -> pa.Schema:
    order = list(views)
    fields: list[pa.Field] = []
    described: list[list[Any]] = []
    for kind, name, value_type, column, view in vectors:
        metadata = None
        described.append([kind, name, value_type.name])
        if view >= 0:
            metadata = {"status": f"{views[view]}__status", "event_timestamp": f"{views[view]}__event_timestamp"}
            described[-1] += order.index(view), response.vector_length(name)
        fields.append(pa.field(name, column.type, metadata=metadata))
    for name in views.values():
        fields += pa.field(f"{name}__status", _STATUS_TYPE), pa.field(f"{name}__event_timestamp", _TIME_TYPE)
    if positions:
        fields += (pa.field(f"{name}__position", pa.int64()) for name in views.values())
    about = {"columns": described, "versions": response.resolved.versions, "positions": positions}
    return pa.schema(fields, metadata={messages.METADATA: json.dumps(about)})


def _statuses(read: Columns) -> pa.Array:
    codes = np.where(read.found, 0, 1).astype(np.int8)
    if read.hidden is not None:
        codes[read.hidden] = 2
    return pa.DictionaryArray.from_arrays(codes, _STATUSES)


def _as_table(response: Any, *, positions: bool) -> pa.RecordBatch:
    table = response.to_arrow(positions=positions).combine_chunks()
    columns = [column.combine_chunks() for column in table.columns]
    return pa.record_batch(columns, schema=table.schema)
