"""Responses as a stream of Arrow's IPC format: one record batch, with the columns of the JSON in their stored types.

Statuses and event times are columns of their own, once for each view: ``<view>__status`` and
``<view>__event_timestamp``. The metadata of a feature's field names them as ``status`` and ``event_timestamp``; join
keys and computed features, which are always present, have neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_quorin.read.response import LazyResponse

if TYPE_CHECKING:
    from quorin.assembly import Columns

CONTENT_TYPE = b"application/vnd.apache.arrow.stream"
_STATUSES = pa.array(["PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE"])
_STATUS_TYPE = pa.dictionary(pa.int8(), pa.string())
_TIME_TYPE = pa.timestamp("ns", "UTC")


def body(response: Any) -> bytes:
    """The response as one record batch."""
    vectors = response.arrow_vectors() if isinstance(response, LazyResponse) else None
    fields, columns = [], []
    views: dict[int, tuple[str, Columns]] = {}
    if vectors is None:
        return _stream(response.to_arrow().combine_chunks().to_batches())
    for name, column, view in vectors:
        metadata = None
        if view >= 0:
            view_name, read = views.setdefault(view, response.view_columns(view))
            metadata = {"status": f"{view_name}__status", "event_timestamp": f"{view_name}__event_timestamp"}
        fields.append(pa.field(name, column.type, metadata=metadata))
        columns.append(column)
    for view_name, read in views.values():
        fields += pa.field(f"{view_name}__status", _STATUS_TYPE), pa.field(f"{view_name}__event_timestamp", _TIME_TYPE)
        columns += _statuses(read), pa.array(read.event_time_ns, _TIME_TYPE, mask=~read.found)
    return _stream([pa.record_batch(columns, pa.schema(fields))])


def _statuses(read: Columns) -> pa.Array:
    codes = np.where(read.found, 0, 1).astype(np.int8)
    if read.hidden is not None:
        codes[read.hidden] = 2
    return pa.DictionaryArray.from_arrays(codes, _STATUSES)


def _stream(batches: list[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
