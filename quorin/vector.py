"""Exact vector search over the rows of a segment: the entities whose vectors are nearest to a query.

A search scans every row in shared memory: it builds no index, copies nothing but the result, and its result is never
stale. Beside a writer it reads each row as it was at one moment, old or new, and waits for nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa

from quorin import serving
from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    CORRUPT,
    DESCRIPTOR_ITEMS,
    METRIC_COSINE,
    METRIC_INNER_PRODUCT,
    METRIC_L2,
    SEARCH_ITEMS,
    V_CELL,
    V_DOUBLE,
    V_METRIC,
    V_NULL_BYTE,
    V_NULL_MASK,
    V_SIZE,
    V_VARIABLE,
)  # fmt: skip
from quorin.engine.memory.filling import hidden_of
from quorin.engine.rows.intake import id_array
from quorin.engine.rows.packed import text_addresses
from quorin.errors import CorruptSegmentError, InvalidRowError
from quorin.layout import iterate_occupied
from quorin.schema import dtype

if TYPE_CHECKING:
    from quorin.engine.arrays import Float64s, Int64s
    from quorin.engine.memory.view import SegmentView
    from quorin.schema import FeatureField
    from quorin.shm import Segment

__all__ = ["METRICS", "Neighbours", "distances", "entity_ids", "search", "search_plainly"]

Metric = Literal["l2", "cosine", "inner_product"]

METRICS = {"l2": METRIC_L2, "cosine": METRIC_COSINE, "inner_product": METRIC_INNER_PRODUCT}
_LANES = 8
_LISTED_KEYS, _LISTED_BYTES = 1 << 16, 1 << 21
_MAX_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest entities, nearest first; of equally distant ones those with the smaller id (in bytes) first."""

    entity_ids: list[str]
    distances: Float64s
    """float64, shape ``(len(entity_ids),)``: the smaller the nearer."""
    not_held: frozenset[int] = frozenset()
    """The deployment's partitions whose entities were not searched, as this node does not hold them."""


def search(
    segment: Segment, field: str, query: Any, *, k: int, metric: Metric = "l2", among: Any | None = None
) -> Neighbours:
    """The at most ``k`` entities whose vectors in ``field`` (float32 or float64, of fixed or variable length) are
    nearest to ``query``, found by looking at all of them. Releases the GIL.

    The distance is, in float64, for ``l2`` the Euclidean one; for ``cosine`` one minus the cosine of the angle (1 where
    a vector is all zeros); for ``inner_product`` minus the inner product. Rows whose vector is null or of another
    length than the query, or whose distance is no number, do not count. ``among`` limits the search to some entities:
    ids as for :func:`quorin.assembly.read`. A node that holds some of the deployment's partitions searches these, and
    ``not_held`` of the result says which were not searched.

    :raises InvalidRowError: for a field that has no vectors, a query that is no vector of numbers or does not have the
        field's length, an unknown metric, or a ``k`` below 1.
    """
    from quorin.engine import kernels

    target = _checked(segment.schema, field, query, k, metric)
    for _ in range(_MAX_ROUNDS):
        view = segment.current_view()
        task = _task(view, field, len(target), metric)
        if task is None:
            return _sorted(view, [], np.empty(0), k)
        allowed = np.empty(0, np.uint8)
        if among is not None:
            ids = id_array(among)
            allowed = np.zeros(view.layout.slot_count, np.uint8)
            if kernels.mark_slots(task, *text_addresses(ids), len(ids), allowed):
                continue
        max_found, step = min(k, view.layout.capacity), view.layout.max_id_bytes
        nearest, sizes = np.empty(max_found), np.empty(max_found, np.int64)
        keys = np.empty((max_found + 1) * step, np.uint8)
        squares = float(_sums(target[None] * target[None])[0])
        found = kernels.search_rows(task, target.ctypes.data, squares, allowed, nearest, sizes, keys, step)
        if found >= 0:
            ids = [keys[i * step : i * step + sizes[i]].tobytes() for i in range(found)]
            return _sorted(view, ids, nearest[:found], k)
        if found == -CORRUPT:
            break
    raise CorruptSegmentError(f"segment {segment.name!r} is damaged: a row points outside the file, or never rests")


def search_plainly(
    segment: Segment, field: str, query: Any, *, k: int, metric: Metric = "l2", among: Any | None = None
) -> Neighbours:
    """The same as :func:`search`, bit for bit, in NumPy: the oracle."""
    target = _checked(segment.schema, field, query, k, metric)
    ids = [entity_id for entity_id, _ in iterate_occupied(segment)]
    if among is not None:
        allowed = set(id_array(among).cast(pa.string()).to_pylist())
        ids = [entity_id for entity_id in ids if entity_id in allowed]
    column = serving.read(segment, ids, [field]).column(3)
    kept = [row for row, vector in enumerate(column) if vector.is_valid and len(vector) == len(target)]
    vectors = np.array([column[row].as_py() for row in kept], np.float64).reshape(len(kept), len(target))
    with np.errstate(all="ignore"):
        found = distances(vectors, target, metric)
    valid = ~np.isnan(found)
    named = [ids[row].encode() for row, is_valid in zip(kept, valid, strict=True) if is_valid]
    return _sorted(segment.current_view(), named, found[valid], k)


def distances(vectors: Float64s, query: Float64s, metric: Metric = "l2") -> Float64s:
    """The distances of vectors, float64 of shape ``(N, size)``, to a query of shape ``(size,)``, as :func:`search`
    defines them.
    """
    if metric == "l2":
        difference = vectors - query
        return cast("Float64s", np.sqrt(_sums(difference * difference)))
    products = _sums(vectors * query)
    if metric == "inner_product":
        return -products
    lengths = np.sqrt(_sums(vectors * vectors)) * np.sqrt(_sums(query[None] * query[None]))
    return np.where(lengths == 0, 1.0, 1.0 - products / np.where(lengths == 0, 1.0, lengths))


def entity_ids(segment: Segment) -> pa.Array:
    """The ids of all entities that have a row, as an Arrow string array in no particular order."""
    from quorin.engine import kernels

    view = segment.current_view()
    slot, chunks, room = 0, [], np.zeros(2, np.int64)
    while slot < view.layout.slot_count:
        ends = np.empty(_LISTED_KEYS, np.int64)
        data = np.empty(_LISTED_BYTES + view.layout.max_id_bytes, np.uint8)
        code = kernels.list_keys(view.descriptor, slot, ends, data, room)
        if code:
            raise CorruptSegmentError(f"segment {view.name!r} is damaged: a key points outside the file")
        count, slot = int(room[0]), int(room[1])
        offsets = np.concatenate([np.zeros(1, np.int32), ends[:count].astype(np.int32)])
        chunks.append(pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)]))
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())


def _checked(schema: Any, name: str, query: Any, k: int, metric: str) -> Float64s:
    field = next((field for field in schema.fields if field.name == name), None)
    if field is None or field.dtype not in (dtype.float32, dtype.float64) or len(field.shape) != 1:
        raise InvalidRowError(
            f"no vectors in {name!r}: {schema.__name__} has "
            f"{[f.name for f in schema.fields if len(f.shape) == 1 and f.dtype in (dtype.float32, dtype.float64)]}"
        )
    if metric not in METRICS:
        raise InvalidRowError(f"unknown metric {metric!r}, expected one of {list(METRICS)}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidRowError(f"expected k to be a whole number of 1 and more, got {k!r}")
    try:
        vector = np.ascontiguousarray(query, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidRowError(f"expected a query of numbers: {error}") from None
    if vector.ndim != 1 or not len(vector):
        raise InvalidRowError(f"expected a query of one dimension, got shape {vector.shape}")
    if not field.is_variable and len(vector) != field.shape[0]:
        raise InvalidRowError(f"expected a query of {field.shape[0]} numbers for {name!r}, got {len(vector)}")
    return vector


def _task(view: SegmentView, name: str, size: int, metric: str) -> Int64s | None:
    """What the kernel takes; None if the rows have no vectors under that name."""
    cell = next((cell for cell in fmt.body_layout(view.stored).cells if cell.field.name == name), None)
    if cell is None or not _has_vectors(cell.field, size):
        return None
    body = view.layout.body_offset
    task = np.zeros(SEARCH_ITEMS, np.int64)
    task[:DESCRIPTOR_ITEMS] = view.descriptor
    task[V_CELL] = body + cell.offset
    task[V_NULL_BYTE] = body + cell.null_byte
    task[V_NULL_MASK] = cell.null_mask
    task[V_VARIABLE] = cell.field.is_variable
    task[V_DOUBLE] = cell.field.dtype is dtype.float64
    task[V_SIZE] = size
    task[V_METRIC] = METRICS[metric]
    return task


def _has_vectors(field: FeatureField, size: int) -> bool:
    is_vector = field.dtype in (dtype.float32, dtype.float64) and len(field.shape) == 1
    return is_vector and (field.is_variable or field.shape[0] == size)


def _sums(terms: Float64s) -> Float64s:
    """The sum of each row in the kernel's order: eight lanes, then the lanes by halves, then the rest one by one."""
    rows, size = terms.shape
    lanes = np.zeros((rows, _LANES))
    full = size - size % _LANES
    for start in range(0, full, _LANES):
        lanes = lanes + terms[:, start : start + _LANES]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    total = lanes[:, 0]
    for column in range(full, size):
        total = total + terms[:, column]
    return total


def _sorted(view: SegmentView, ids: list[bytes], distances: Float64s, k: int) -> Neighbours:
    order = sorted(range(len(ids)), key=lambda i: (distances[i], ids[i]))[:k]
    held = view.partitioning.held - hidden_of(view.header["partitions"], view.partitioning)
    not_held = frozenset(range(view.partitioning.count)) - held
    return Neighbours([ids[i].decode() for i in order], distances[order] if order else np.empty(0), not_held)
