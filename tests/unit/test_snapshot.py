"""A segment as a file and back: the same rows to the bit, never a torn one, and no damaged file comes into force."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin import assembly, layout
from quorin.engine.format import segment as fmt
from quorin.engine.rows.batch import to_batch
from quorin.errors import CorruptSnapshotError, HydrationConflictError, SegmentNotFoundError, SharedMemoryError
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.snapshot import restore, snapshot
from tests.support.machines import Machine, whole_rows
from tests.support.schemas import Everything, rows_of

Pair = make_schema("Pair", [FeatureField("a", dtype.float64), FeatureField("b", dtype.string)])
IDS = ["x", "a key that is long enough to need the heap", "zë"]


def save(machine: Machine, path: Path, schema: Any = Pair) -> Any:
    with machine.registry.open_current(schema) as segment:
        return snapshot(segment, path)


def write(machine: Machine, entity_id: str, a: float) -> None:
    machine.producer.write(Pair, entity_id, {"a": a, "b": f"text {a}"}, int(a))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 5), rows_of(Everything), st.booleans()), max_size=8))
def test_rows_come_back_to_the_bit_deletions_too(tmp_path_factory, writes) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.producer.write(Everything, "first", {field.name: None for field in Everything.fields}, 1)
    for entity_id, time, row, deletes in writes:
        machine.producer.write(Everything, entity_id, row, time)
        if deletes:
            machine.producer.delete(Everything, entity_id, time)
    machine.drain([Everything])
    served = machine.served(Everything, [*IDS, "first"])
    taken = save(machine, machine.shm.parent / "file", Everything)
    machine.reboot()
    result = restore(machine.shm.parent / "file", machine.registry)
    assert machine.served(Everything, [*IDS, "first"]) == served
    assert (result.entity_count, result.position) == (taken.entity_count, taken.position)
    with machine.registry.open_current(Everything, read_only=False) as segment:
        assert segment.name == result.segment_name != taken.segment_name
        layout.insert_many(segment, pa.table({f.name: pa.nulls(1) for f in Everything.fields} | {"entity_id": ["new"]}))
        assert whole_rows(segment, [*IDS, "first"]) == served
    machine.reboot()
    machine.close()


def test_the_log_is_read_on_from_the_snapshot(machine: Machine, tmp_path: Path) -> None:
    write(machine, "x", 1)
    machine.drain([Pair])
    save(machine, tmp_path / "file")
    machine.reboot()
    write(machine, "x", 2)
    restore(tmp_path / "file", machine.registry)
    machine.drain([Pair])
    assert [row[1][2] for row in machine.served(Pair, ["x"])] == [["'text 2'"]]


def test_what_was_trimmed_since_comes_from_the_history(machine: Machine, tmp_path: Path) -> None:
    write(machine, "x", 1)
    write(machine, "y", 1)
    machine.drain([Pair])
    save(machine, tmp_path / "file")
    write(machine, "x", 2)
    machine.producer.delete(Pair, "y", 5)
    machine.drain([Pair])
    bounds = machine.registry.backend.log().bounds()
    assert bounds.trimmed == bounds.last
    served = machine.served(Pair, ["x", "y"])
    machine.reboot()
    restore(tmp_path / "file", machine.registry)
    write(machine, "z", 9)
    machine.drain([Pair])
    assert machine.served(Pair, ["x", "y"]) == served
    with machine.registry.open_current(Pair) as segment:
        assert assembly.read(segment, ["z"]).to_pylist()[0]["a"] == 9
        assert segment.position == machine.registry.backend.log().bounds().last


def test_every_row_is_whole_although_a_writer_goes_on(machine: Machine, tmp_path: Path) -> None:
    wide = make_schema("Wide", [FeatureField("v", dtype.int64, (64,)), FeatureField("s", dtype.string)])
    ids = [f"id{i}" for i in range(500)]

    def batch(version: int) -> pa.RecordBatch:
        values = pa.FixedSizeListArray.from_arrays(np.full(64 * len(ids), version), 64)
        return to_batch(wide, pa.table({"entity_id": ids, "v": values, "s": [f"{version}"] * len(ids)}))

    stop = threading.Event()
    with machine.registry.create(wide, capacity=500) as segment:
        layout.apply_batch(segment, batch(0))

        def write_on() -> None:
            version = 0
            while not stop.is_set():
                version += 1
                layout.apply_batch(segment, batch(version))

        writer = threading.Thread(target=write_on)
        writer.start()
        try:
            for number in range(10):
                with machine.registry.open_current(wide) as reader:
                    snapshot(reader, tmp_path / f"file{number}")
        finally:
            stop.set()
            writer.join()
    for number in range(10):
        machine.reboot()
        restore(tmp_path / f"file{number}", machine.registry)
        with machine.registry.open_current(wide) as restored:
            assert len(restored) == 500
            for row in assembly.read(restored, ids).to_pylist():
                assert set(row["v"]) == {int(row["s"])}, row


def test_a_snapshot_is_the_owners_alone_and_replaces_the_one_before(machine: Machine, tmp_path: Path) -> None:
    write(machine, "x", 1)
    machine.drain([Pair])
    target = tmp_path / "deep.snapshot"
    first = save(machine, target)
    inode = target.stat().st_ino
    second = save(machine, target)
    assert target.stat().st_ino != inode
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert first.byte_count == second.byte_count == target.stat().st_size - 64
    assert [path.name for path in tmp_path.iterdir() if "pending" in path.name] == []


def damage(path: Path, place: int, text: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        file.write(text)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(os.urandom(20_000)),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 100),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(64)),
    "a row": lambda path: damage(path, path.stat().st_size // 2, b"!"),
    "the magic": lambda path: damage(path, 0, b"!"),
    "the name": lambda path: damage(path, 152, b"../../../../etc/passwd"),
    "the schema": lambda path: damage(path, 4100, b"!"),
    "the trailer's position": lambda path: damage(path, -24, b"!"),
    "the trailer's digest": lambda path: damage(path, -45, b"!"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_refused_by_name_and_nothing_is_left(machine: Machine, tmp_path: Path, how: str) -> None:
    write(machine, "x", 1)
    machine.drain([Pair])
    target = tmp_path / "some.snapshot"
    save(machine, target)
    machine.reboot()
    DAMAGES[how](target)
    with pytest.raises(CorruptSnapshotError, match=r"some\.snapshot"):
        restore(target, machine.registry)
    assert list(machine.shm.glob("quorin_*")) == []
    with pytest.raises(SegmentNotFoundError):
        machine.registry.open_current(Pair)


@pytest.mark.parametrize("failing", ["the trailer", "the header", "the image"])
def test_a_failed_read_is_no_damage(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write(machine, "x", 1)
    machine.drain([Pair])
    target = tmp_path / "some.snapshot"
    image_bytes = save(machine, target).byte_count
    served = machine.served(Pair, ["x"])
    machine.reboot()
    preadv = os.preadv

    def refused(descriptor: int, into: list[memoryview], offset: int) -> int:
        is_header = len(into[0]) == fmt.HEADER_BYTES
        part = "the trailer" if offset >= image_bytes else "the header" if is_header else "the image"
        if part == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, into, offset)

    monkeypatch.setattr(os, "preadv", refused)
    with pytest.raises(SharedMemoryError, match=r"cannot read the snapshot .*some\.snapshot: Input/output error"):
        restore(target, machine.registry)
    assert list(machine.shm.glob("quorin_*")) == []
    monkeypatch.setattr(os, "preadv", lambda descriptor, into, offset: preadv(descriptor, [into[0][:4000]], offset))
    restore(target, machine.registry)
    assert machine.served(Pair, ["x"]) == served


def test_what_is_served_is_not_replaced(machine: Machine, tmp_path: Path) -> None:
    write(machine, "x", 1)
    machine.drain([Pair])
    save(machine, tmp_path / "file")
    with pytest.raises(HydrationConflictError, match="quorin_Pair_"):
        restore(tmp_path / "file", machine.registry)
    assert len(list(machine.shm.glob("quorin_*"))) == 1


def test_a_place_that_is_not_there_is_an_error(machine: Machine, tmp_path: Path) -> None:
    write(machine, "x", 1)
    machine.drain([Pair])
    with pytest.raises(SharedMemoryError, match="nowhere"):
        save(machine, tmp_path / "nowhere" / "file")
    with pytest.raises(SharedMemoryError, match="nowhere"):
        restore(tmp_path / "nowhere", machine.registry)


def test_a_large_snapshot_reports_its_progress(machine: Machine, tmp_path: Path) -> None:
    with machine.registry.create(Pair, capacity=400_000):
        pass
    steps: list[tuple[int, int]] = []
    with machine.registry.open_current(Pair) as segment:
        taken = snapshot(segment, tmp_path / "file", progress=lambda *step: steps.append(step))
    assert len(steps) > 1
    assert steps[-1] == (taken.byte_count, taken.byte_count)
    assert ParquetDatasetStore(machine.base).distinct_entity_ids(Pair).to_pylist() == []
