"""Training sets: labels joined with what was served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.history.point_in_time import last_of_group
from quorin.engine.rows.batch import time_column
from quorin.engine.rows.intake import table_columns
from quorin.errors import InvalidRowError


def with_labels(served: pa.Table, labels: Any) -> pa.Table:
    """The served rows of labels, in the order of the labels, with the labels' other columns."""
    columns = {name: pa.array(values, from_pandas=True) if not isinstance(values, (pa.Array, pa.ChunkedArray)) else
               values for name, values in table_columns(labels).items()}  # fmt: skip
    table = pa.table(columns)
    by_id = "request_id" in columns
    if not by_id and not {"entity_id", "time"} <= {*columns}:
        raise InvalidRowError(f"labels need the columns request_id, or entity_id and time; they have {list(columns)}")
    keys = ["request_id", *(["row"] if "row" in columns else [])] if by_id else ["entity_id", "time"]
    others = [name for name in columns if name not in keys]
    both = [name for name in others if name in served.schema.names]
    if both:
        raise InvalidRowError(f"labels have columns that were served too, rename them: {both}")
    if not by_id and "entity_id" not in served.schema.names:
        raise InvalidRowError("requests have several entities, so labels need request_id")
    found, labelled = _by_keys(served, table, keys) if by_id else _by_time(served, table)
    result = served.take(found)
    for name in others:
        result = result.append_column(name, table.column(name).take(labelled))
    return result


def _by_keys(served: pa.Table, labels: pa.Table, keys: list[str]) -> tuple[pa.Array, pa.Array]:
    """The pairs of rows with equal keys: their numbers in both tables."""
    left = labels.select(keys).append_column("label", pa.array(np.arange(len(labels))))
    right = served.select(keys).append_column("served", pa.array(np.arange(len(served))))
    left = left.cast(pa.schema([*(right.schema.field(key) for key in keys), left.schema.field("label")]))
    pairs = left.join(right, keys, join_type="inner", use_threads=False).sort_by(
        [("label", "ascending"), ("served", "ascending")]
    )
    return pairs.column("served").combine_chunks(), pairs.column("label").combine_chunks()


def _by_time(served: pa.Table, labels: pa.Table) -> tuple[pa.Array, pa.Array]:
    """For each label the last row of its entity that was served at or before its time."""
    keys = served.column("entity_id").combine_chunks().dictionary_encode()
    times = served.column("time").cast(pa.int64()).to_numpy()
    codes = keys.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    order = np.lexsort((np.arange(len(times)), times, codes))
    order = order[codes[order] >= 0]
    counts = np.bincount(codes[order], minlength=len(keys.dictionary)).astype(np.int64)
    wanted = pc.index_in(labels.column("entity_id").cast(pa.string()), value_set=keys.dictionary)
    group = wanted.fill_null(0).to_numpy()
    most = time_column(labels.column("time"), "time").to_numpy()
    if not len(order):
        nothing = pa.array([], pa.int64())
        return nothing, nothing
    last = last_of_group(times[order], np.cumsum(counts) - counts, counts, group, most)
    is_found = (last >= 0) & wanted.is_valid().to_numpy(zero_copy_only=False)
    return pa.array(order[last[is_found]]), pa.array(np.flatnonzero(is_found))
