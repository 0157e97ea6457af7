"""Attaching a file: whatever is wrong with it is refused there, with a clear error and never a crash."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from quorin import assembly, layout
from quorin.engine.format import segment as fmt
from quorin.engine.format.name import SegmentName
from quorin.engine.memory.view import SegmentView
from quorin.errors import CorruptSegmentError, SchemaMismatchError, SegmentNotFoundError, SharedMemoryError
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SHM_DIR, Segment, SegmentRegistry
from tests.support.schemas import Everything, Scalars

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(registry: SegmentRegistry) -> Path:
    with registry.create(Scalars, capacity=10) as segment:
        layout.insert(segment, "x", layout.pack_row(Scalars, a=1, b=2, c=3, d=4))
        return segment.current_view().path


def test_every_flipped_byte_of_the_static_header_or_schema_is_refused(path: Path) -> None:
    original = path.read_bytes()
    schema_bytes = int(SegmentView.attach(path, Scalars, writable=False).header["schema_bytes"])
    places = [*range(fmt.STATIC_BYTES), *range(fmt.HEADER_BYTES, fmt.HEADER_BYTES + schema_bytes)]
    for place in places:
        damaged = bytearray(original)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        with pytest.raises(CorruptSegmentError, match=path.name):
            SegmentView.attach(path, Scalars, writable=False)


@pytest.mark.parametrize("size", [0, 1, 100, 4095, 4096, 5000])
def test_a_truncated_file_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptSegmentError, match="bytes"):
        SegmentView.attach(path, Scalars, writable=False)


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, b"SQLite f", "SQLite"),
        (8, b"\1\2\3\4", "byte order"),
        (12, b"\3\0\0\0", "version 3"),
        (24, b"\0" * 8, "says 0"),
    ],
)
def test_foreign_files_are_told_apart(path: Path, offset: int, value: bytes, text: str) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + len(value)] = value
    path.write_bytes(damaged)
    with pytest.raises(CorruptSegmentError, match=text):
        SegmentView.attach(path, Scalars, writable=False)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (make_schema("Scalars", Scalars.fields, version=2), "Scalars version 1; Scalars version 2 was requested"),
        (make_schema("Other", Scalars.fields), "Scalars version 1; Other version 1 was requested"),
        (make_schema("Scalars", Scalars.fields[:3]), "'d' only in the segment"),
        (make_schema("Scalars", [*Scalars.fields, FeatureField("e", dtype.bool)]), "'e' not in the segment"),
        (
            make_schema("Scalars", [FeatureField("a", dtype.int32), *Scalars.fields[1:]]),
            "is float32 there, int32 here$",
        ),
        (
            make_schema("Scalars", [FeatureField("a", dtype.float32, (4,), default=0.5), *Scalars.fields[1:]]),
            r"'a' is float32 there, float32\[4\] \(null as 0\.5\) here$",
        ),
        (make_schema("Scalars", Scalars.fields[::-1]), "another order"),
    ],
)
def test_a_segment_of_another_schema_is_refused_with_the_difference(path: Path, schema: Schema, text: str) -> None:
    with pytest.raises(SchemaMismatchError, match=text):
        SegmentView.attach(path, schema, writable=False)


def test_a_segment_carries_its_schema(path: Path) -> None:
    view = SegmentView.attach(path, None, writable=False)
    assert repr(view.schema.fields) == repr(Scalars.fields)


def test_a_missing_file_and_a_link_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SegmentNotFoundError, match="nothing"):
        SegmentView.attach(tmp_path / "nothing", Scalars, writable=False)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(SharedMemoryError, match="link"):
        SegmentView.attach(link, Scalars, writable=False)


def test_files_are_for_their_owner_alone_and_readers_cannot_write(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    view = SegmentView.attach(path, Scalars, writable=False)
    with pytest.raises(ValueError, match="read-only"):
        view.mapping.memory[5000] = 1


def test_a_segment_that_does_not_fit_is_a_clear_error_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    reader = Segment(SegmentView.attach(path, Scalars, writable=False), None, read_only=True)
    free = shutil.disk_usage(SHM_DIR).total
    capacity = free // 50
    name = SegmentName.first("Scalars")
    with pytest.raises(SharedMemoryError, match=rf"cannot reserve .* bytes in {SHM_DIR} .*; .* are free there"):
        SegmentView.create(Path(SHM_DIR), name, Scalars, capacity=capacity, max_id_bytes=64, heap_bytes=0)
    assert not list(Path(SHM_DIR).glob(f"{name}*"))
    assert assembly.assemble(reader, "x").tolist() == [1, 2, 3, 4], "readers of other segments go on"
    with pytest.raises(SharedMemoryError, match="nowhere"):
        SegmentView.create(tmp_path / "nowhere", name, Scalars, capacity=1, max_id_bytes=64, heap_bytes=0)


def test_neighbouring_fields_of_one_dtype_are_one_span() -> None:
    wide = make_schema("Wide", [FeatureField(f"f{i}", dtype.float32) for i in range(200)])
    assert span_count(wide) == 1
    assert span_count(Scalars) == 1
    mixed = make_schema("Mixed", [FeatureField(f"f{i}", dtype.float32 if i % 2 else dtype.int64) for i in range(6)])
    assert span_count(mixed) == 6


def span_count(schema: Schema) -> int:
    import tempfile

    from quorin.engine.format.abi import P_SPAN_COUNT

    with tempfile.TemporaryDirectory() as directory:
        name = SegmentName.first(schema.__name__)
        view = SegmentView.create(Path(directory), name, schema, capacity=1, max_id_bytes=8, heap_bytes=0)
        return int(view.plan[P_SPAN_COUNT])


FLIP = """
import sys
from pathlib import Path
from quorin import assembly, layout
from quorin.engine.memory import file as mapping
from quorin.errors import QuorinError
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.view import SegmentView
from tests.support.schemas import Everything

path = Path(sys.argv[1])
original = path.read_bytes()
nulls = {field.name: None for field in Everything.fields}
row = layout.pack_row(Everything, **nulls | {"text": "t", "tags": ["a"], "f32": 1.0})
refused = 0
for place in range(512, 4096):
    for flip in (0x01, 0x80):
        damaged = bytearray(original)
        damaged[place] ^= flip
        path.write_bytes(damaged)
        try:
            segment = Segment(SegmentView.attach(path, Everything, writable=True), None, read_only=False)
            assert assembly.read(segment, ["x"]).to_pylist()[0]["text"] == "original"
            layout.insert(segment, "y", row, event_time_ns=2**62)
            layout.insert(segment, "x", row, event_time_ns=2**62)
            assert assembly.read(segment, ["x", "y"]).column("text").to_pylist() == ["t", "t"]
            assert len(segment) == 2
            segment.close()
        except QuorinError:
            refused += 1
        for other in path.parent.glob("quorin_*"):
            other.unlink()
print(refused)
"""


def test_any_damage_to_the_changing_part_of_the_header_is_refused_or_harmless(registry: SegmentRegistry) -> None:
    """Two flips of every byte; a crash would be an exit code, not an exception."""
    with registry.create(Everything, capacity=10) as segment:
        values = {field.name: None for field in Everything.fields} | {"text": "original", "numbers": [1, 2]}
        layout.insert(segment, "x", layout.pack_row(Everything, **values))
        path = segment.current_view().path
    done = subprocess.run(
        [sys.executable, "-c", FLIP, str(path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 6000, "all that is reserved, and all counters that are out of bounds"


def test_a_slot_or_cell_that_points_outside_the_file_is_refused_by_the_read(registry: SegmentRegistry) -> None:
    with registry.create(Everything, capacity=10) as segment:
        values = {field.name: None for field in Everything.fields} | {"text": "original", "tags": ["a"]}
        layout.insert(segment, "x", layout.pack_row(Everything, **values))
        view = segment.current_view()
        found = layout.find_row(view, b"x")
        assert found is not None
        slot, row = found
        for cell in fmt.body_layout(Everything).cells:
            if values[cell.field.name] is not None:
                place = row + view.layout.body_offset + cell.offset
                kept = view.mapping.memory[place : place + 8].copy()
                view.mapping.memory[place : place + 8] = 0xFF
                with pytest.raises(CorruptSegmentError, match="points outside"):
                    assembly.read(segment, ["x"])
                view.mapping.memory[place : place + 8] = kept
        view.mapping.memory[slot : slot + 4] = 0xFF
        for read in (lambda: assembly.assemble(segment, "x"), lambda: assembly.read(segment, ["x"])):
            with pytest.raises(CorruptSegmentError, match="points outside"):
                read()
