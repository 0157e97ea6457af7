"""What notebooks show of a segment."""

from __future__ import annotations

from quorin.layout import insert, pack_row
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry


def test_a_notebook_shows_rows_memory_and_fields(registry: SegmentRegistry) -> None:
    schema = make_schema(
        "Shown", [FeatureField("rate", dtype.float32, (3,)), FeatureField("tags", dtype.string, (None,))]
    )
    segment = registry.create(schema, capacity=10)
    insert(segment, "<b>", pack_row(schema, rate=[1, 2, 3], tags=["<script>"]))
    html = segment._repr_html_()
    assert "Shown version 1: 1 entity, " in html
    assert "<td>rate</td><td>float32[3]</td>" in html
    assert "<script>" not in html
    registry.discard(segment)
    assert segment._repr_html_() == f"<code>&lt;Segment {repr(segment)[9:-1]}&gt;</code>"
