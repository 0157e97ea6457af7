"""The flat arrays that kernels take: where a segment's sections are, and what a read copies from a row.

:mod:`quorin.engine.format.abi` lays them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import (
    AGE_NS,
    CONSTANT,
    D_BODY_BYTES,
    D_BODY_OFFSET,
    D_CAPACITY,
    D_FREE,
    D_HEADER,
    D_HEAP,
    D_HEAP_BYTES,
    D_INDEX,
    D_KEY_INLINE,
    D_MAX_ID_BYTES,
    D_PARTITION_SHIFT,
    D_ROW_LIMIT,
    D_ROW_STRIDE,
    D_ROWS,
    D_SEED_0,
    D_SEED_1,
    D_SLOT_COUNT,
    DESCRIPTOR_ITEMS,
    MISSING_FLOAT32,
    P_AGE_COUNT,
    SPAN_CODE,
    SPAN_COUNT,
    SPAN_SOURCE,
)  # fmt: skip
from quorin.engine.format.partition import hash_shift
from quorin.engine.rows.compatibility import fits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quorin.engine.arrays import Int64s
    from quorin.schema import FeatureField, Schema


def vector_plan(
    descriptor: Int64s, stored: Schema, fields: Sequence[FeatureField], ages: Sequence[int] | None = None
) -> Int64s:
    """The read plan that fills a float32 vector with ``fields``, in the order given; ``ages`` has the age limit of
    each in ns, 0 for none.

    Fields of one dtype that are neighbours both in the row and in the vector become one span. Fields that are not
    stored (any more) read as their default.
    """
    cells = {cell.field.name: cell for cell in fmt.body_layout(stored).cells}
    body = int(descriptor[D_BODY_OFFSET])
    spans: list[list[int]] = []
    patches: list[tuple[int, ...]] = []
    limits: list[tuple[int, ...]] = []
    target, out_bytes = 0, 4 * sum(field.element_count for field in fields)
    for field, age in zip(fields, ages or [0] * len(fields), strict=True):
        count = field.element_count
        if not count:
            continue
        default_bits = int(np.float32(field.vector_default).view(np.uint32))
        limits.append((age, target, out_bytes, count, default_bits, 0, 0, 0))
        cell = cells.get(field.name)
        if cell is None or not fits(cell.field, field):
            spans.append([default_bits, target, out_bytes, count, CONSTANT])
            target += 4 * count
            continue
        source, code = body + cell.offset, cell.field.dtype
        last = spans[-1] if spans else None
        if last and last[SPAN_CODE] == code and last[SPAN_SOURCE] + last[SPAN_COUNT] * code.item_size == source:
            last[SPAN_COUNT] += count
        else:
            spans.append([source, target, out_bytes, count, int(code)])
        patches.append((body + cell.null_byte, cell.null_mask, target, out_bytes, count, default_bits))
        target += 4 * count
    return with_ages(read_plan(descriptor, out_bytes, spans, patches, MISSING_FLOAT32), limits)


def read_plan(
    descriptor: Int64s, out_bytes: int, spans: list[list[int]], patches: list[tuple[int, ...]], missing: int
) -> Int64s:
    """A read plan as :mod:`quorin.engine.format.abi` lays it out; ``out_bytes`` is what a row takes in the output."""
    head = np.array([out_bytes, len(spans), len(patches), missing, 0, 0], np.int64)
    tail = [np.array(part, np.int64).ravel() for part in (spans, patches)]
    return np.concatenate([descriptor, head, *tail])


def with_ages(plan: Int64s, limits: Sequence[tuple[int, ...]]) -> Int64s:
    """A read plan that has none, with age limits; those of 0 ns are left out."""
    limits = sorted(limit for limit in limits if limit[AGE_NS])
    if not limits:
        return plan
    aged = np.concatenate([plan, np.array(limits, np.int64).ravel()])
    aged[P_AGE_COUNT] = len(limits)
    return aged


def describe(address: int, layout: fmt.SegmentLayout, seed: Any) -> Int64s:
    """The descriptor of a segment that is mapped at ``address``."""
    words = np.zeros(DESCRIPTOR_ITEMS, np.int64)
    words[D_HEADER] = address
    words[D_INDEX] = address + layout.index_offset
    words[D_SLOT_COUNT] = layout.slot_count
    words[D_ROWS] = address + layout.rows_offset
    words[D_ROW_STRIDE] = layout.row_stride
    words[D_HEAP] = address + layout.heap_offset
    words[D_HEAP_BYTES] = layout.heap_bytes
    words[D_SEED_0 : D_SEED_1 + 1] = seed.view(np.int64)
    words[D_KEY_INLINE] = layout.key_inline
    words[D_BODY_OFFSET] = layout.body_offset
    words[D_BODY_BYTES] = layout.body_bytes
    words[D_FREE] = address + layout.free_offset
    words[D_ROW_LIMIT] = layout.row_limit
    words[D_CAPACITY] = layout.capacity
    words[D_MAX_ID_BYTES] = layout.max_id_bytes
    if layout.partition_count > 1:
        words[D_PARTITION_SHIFT] = hash_shift(layout.partition_count)
    return words
