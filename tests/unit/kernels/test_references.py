"""Kernels keep nothing of what they are called with."""

from __future__ import annotations

import sys

import numpy as np

from quorin import assembly, layout
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry


class Age(FeatureSchema):
    version = 1
    fields = [FeatureField("age", dtype.float32)]


def test_reads_keep_no_reference_to_their_arguments(registry: SegmentRegistry) -> None:
    segment = registry.create(Age, capacity=10)
    entity_id = "".join(["a", "user"])
    layout.insert(segment, entity_id, layout.pack_row(Age, age=1.0))
    out, found = np.empty((1, 1), np.float32), np.empty(1, np.bool_)
    plan, ids = segment.current_view().plan, [entity_id]
    before = [sys.getrefcount(item) for item in (entity_id, out, found, plan)]
    for _ in range(100):
        assembly.assemble(segment, entity_id, out=out[0])
        assembly.assemble_batch(segment, ids, out=out, found_mask=found)
        assembly.read(segment, ids)
    assert [sys.getrefcount(item) for item in (entity_id, out, found, plan)] == before
