"""The layout: sizes that were promised, and the tables in docs/format.md made from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from quorin.engine.format import segment as fmt
from quorin.schema import FeatureField, Schema, dtype, make_schema
from tests.support.schemas import Scalars, schemas

DOCUMENT = Path(__file__).parents[3] / "docs" / "format.md"


def test_four_scalars_with_ids_up_to_24_bytes_take_at_most_128_bytes_an_entity() -> None:
    for code in (dtype.float32, dtype.float64):
        schema = make_schema("Four", [FeatureField(name, code) for name in "abcd"])
        layout = fmt.segment_layout(schema, capacity=10**6, max_id_bytes=64, schema_bytes=500, heap_bytes=1 << 16)
        assert layout.key_inline >= 24
        assert layout.file_bytes / layout.capacity <= 128


def test_200_floats_take_at_most_1_3_times_their_raw_size() -> None:
    schema = make_schema("Wide", [FeatureField(f"f{i}", dtype.float32) for i in range(200)])
    layout = fmt.segment_layout(schema, capacity=10**6, max_id_bytes=64, schema_bytes=20_000, heap_bytes=1 << 16)
    assert layout.file_bytes / layout.capacity <= 1.3 * 800


@given(schemas())
def test_cells_are_aligned_and_do_not_overlap(schema: Schema) -> None:
    body = fmt.body_layout(schema)
    end = 0
    for cell in sorted(body.cells, key=lambda cell: cell.offset):
        alignment = 8 if cell.field.is_variable else cell.field.dtype.item_size
        assert cell.offset >= end
        assert cell.offset % alignment == 0
        end = cell.offset + cell.byte_count
    assert end <= body.bitmap_offset
    assert len({(cell.null_byte, cell.null_mask) for cell in body.cells}) == len(body.cells)
    assert all(body.bitmap_offset <= cell.null_byte < body.byte_count for cell in body.cells)
    assert [cell.field for cell in body.cells] == list(schema.fields)


@pytest.mark.parametrize("max_id_bytes", [1, 12, 20, 28, 64, 65535])
def test_sections_follow_each_other_on_cache_lines(max_id_bytes: int) -> None:
    layout = fmt.segment_layout(Scalars, capacity=1000, max_id_bytes=max_id_bytes, schema_bytes=123, heap_bytes=1000)
    starts = [layout.index_offset, layout.free_offset, layout.rows_offset, layout.heap_offset, layout.file_bytes]
    assert all(start % fmt.CACHE_LINE == 0 for start in starts)
    assert starts == sorted(starts)
    assert layout.row_stride % 8 == 0
    assert layout.body_offset % 8 == 0
    assert layout.slot_count >= 1.5 * layout.capacity
    assert layout.row_limit > layout.capacity


def test_last_values_follow_the_body_and_leave_it_as_it_is() -> None:
    fields = [FeatureField("a", dtype.float64), FeatureField("b", dtype.uint8), FeatureField("t", dtype.int64)]
    kept = [FeatureField("a", dtype.float64, history=50), FeatureField("b", dtype.uint8, history=3), fields[2]]
    plain, with_history, tied = (
        fmt.body_layout(make_schema("Row", columns, tie_breaker=tie))
        for columns, tie in ((fields, None), (kept, None), (kept, "t"))
    )
    assert (plain.rings, plain.end) == ((), plain.byte_count)
    assert [(cell.offset, cell.null_byte) for cell in plain.cells] == [
        (cell.offset, cell.null_byte) for cell in with_history.cells
    ]
    assert (plain.byte_count, with_history.byte_count) == (18, 18)
    assert with_history.ring_head == 24
    sizes = [ring.end - ring.count for ring in with_history.rings]
    assert sizes == [fmt.align(8 + 50 * (8 + 8 + 8 + 1), 8), fmt.align(8 + 3 * (8 + 8 + 1 + 1), 8)]
    assert [ring.end - ring.count for ring in tied.rings] == [sizes[0] + 50 * 8, sizes[1] + 3 * 8]
    assert all(start % 8 == 0 for ring in tied.rings for start in (ring.count, ring.times, ring.positions, ring.ties))


def test_the_tables_in_the_document_are_those_of_the_layout() -> None:
    text = DOCUMENT.read_text()
    for table in (header_table(), row_table(), cell_table(), ring_table(), dtype_table()):
        assert table in text, f"docs/format.md should hold:\n{table}"


def header_table() -> str:
    return _table(("offset", "field", "type"), _fields(fmt.HEADER_DTYPE))


def row_table() -> str:
    return _table(("offset", "field", "type"), _fields(fmt.ROW_HEADER_DTYPE))


def cell_table() -> str:
    return _table(("offset", "field", "type"), _fields(fmt.VAR_CELL))


def ring_table() -> str:
    return _table(("offset", "field", "type"), _fields(fmt.RING_HEAD))


def dtype_table() -> str:
    return _table(
        ("code", "dtype", "bytes an element"), [(str(int(d)), f"`{d.name}`", str(d.item_size)) for d in dtype]
    )


def _fields(record: object) -> list[tuple[str, str, str]]:
    fields = record.fields  # type: ignore[attr-defined]
    return [(str(fields[name][1]), f"`{name}`", f"`{_type_name(fields[name][0])}`") for name in fields]


def _type_name(kind: object) -> str:
    base, shape = kind.base, kind.shape  # type: ignore[attr-defined]
    name = "partition" if base.names else base.str
    return name + "".join(f"[{n}]" for n in shape)


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
