"""What notebooks show of a segment and of a schema."""

from __future__ import annotations

from IPython.core.formatters import HTMLFormatter

from quorin.layout import insert, pack_row
from quorin.schema import FeatureField, FeatureSchema, dtype, make_schema
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


def test_a_notebook_shows_the_fields_of_a_schema() -> None:
    fields = [FeatureField("rate", dtype.float32, (3,)), FeatureField("n", dtype.int64, default=7)]
    schema = make_schema("Shown", fields)
    html = HTMLFormatter()(schema)
    assert "<caption>Shown version 1</caption>" in html
    assert "<td>rate</td><td>float32[3]</td>" in html
    assert "<td>n</td><td>int64 (null as 7.0)</td>" in html
    assert HTMLFormatter()(FeatureSchema) is None
