"""Segments and their registry: who may write, who takes over, and how readers follow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quorin import assembly, layout
from quorin.engine.memory.growth import grow
from quorin.engine.memory.lock import FileLock
from quorin.errors import (
    CapacityExceededError,
    ConnectionFailedError,
    SchemaError,
    SchemaMismatchError,
    SegmentNotFoundError,
    WriterFencedError,
    WriterLeaseHeldError,
)
from quorin.schema import FeatureSchema, make_schema
from quorin.shm import Segment, SegmentRegistry
from tests.support.redis_server import RedisServer
from tests.support.schemas import Scalars

ROOT = Path(__file__).parents[2]


def row(number: float) -> bytes:
    return layout.pack_row(Scalars, a=number, b=number, c=number, d=number)


def test_a_registry_shows_its_address(registry: SegmentRegistry, tmp_path: Path, redis_url: str) -> None:
    assert repr(registry) == f"<SegmentRegistry {tmp_path}/control, segments in {tmp_path}/shm>"
    at_redis = SegmentRegistry(redis_url, shm_dir=tmp_path)
    assert repr(at_redis) == f"<SegmentRegistry {at_redis.backend.address}, segments in {tmp_path}>"
    at_redis.backend.close()


def test_create_open_and_discard(registry: SegmentRegistry) -> None:
    with pytest.raises(SegmentNotFoundError, match="'Scalars'"):
        registry.open_current(Scalars)
    segment = registry.create(Scalars, capacity=10)
    assert segment.name.startswith("quorin_Scalars_")
    assert (len(segment), segment.capacity, segment.position, segment.log_identity) == (0, 10, 0, 0)
    layout.insert(segment, "x", row(1))
    with registry.open_current(Scalars) as reader:
        assert assembly.assemble(reader, "x").tolist() == [1, 1, 1, 1]
        path = segment.current_view().path
        registry.discard(segment)
        assert not path.exists()
        assert assembly.assemble(reader, "x").tolist() == [1, 1, 1, 1], "an open reader keeps its memory"
    with pytest.raises(SegmentNotFoundError):
        registry.open_current(Scalars)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("prefault_rows", [None, 0, 1, 4000, 10**9])
def test_whatever_is_mapped_at_once_all_of_a_segment_is_reserved_and_can_be_filled(
    registry: SegmentRegistry, prefault_rows: int | None, replaces: bool
) -> None:
    if replaces:
        registry.create(Scalars, capacity=1).close()
    ids = [f"id {i}" for i in range(8000)]
    numbers = np.arange(8000, dtype=np.float32)
    segment = registry.create(Scalars, capacity=8000, prefault_rows=prefault_rows)
    state = segment.current_view().path.stat()
    assert 512 * state.st_blocks >= state.st_size == segment.stats()["bytes"]
    values = dict.fromkeys("abcd", numbers)
    assert layout.insert_many(segment, pa.table({"entity_id": ids, "event_time_ns": [1] * 8000, **values})) == 8000
    assert (segment.capacity, segment.current_view().generation) == (8000, 1 + replaces)
    out, found = assembly.assemble_batch(segment, ids)
    assert found.all()
    assert (out == numbers[:, None]).all()


@pytest.mark.parametrize("capacity", [0, -1, 2**32, 1.5, True, "10", None])
def test_a_bad_capacity_is_named(registry: SegmentRegistry, capacity: Any) -> None:
    with pytest.raises(ValueError, match="capacity") as caught:
        registry.create(Scalars, capacity=capacity)
    assert repr(capacity) in str(caught.value)


@pytest.mark.parametrize("prefault_rows", [-1, 2**32, 1.5, True, "10"])
def test_a_bad_number_of_rows_is_named(registry: SegmentRegistry, prefault_rows: Any) -> None:
    with pytest.raises(ValueError, match="prefault_rows") as caught:
        registry.create(Scalars, capacity=1, prefault_rows=prefault_rows)
    assert repr(prefault_rows) in str(caught.value)


@pytest.mark.parametrize("schema", [None, "Scalars", FeatureSchema, int])
def test_what_is_no_schema_is_refused(registry: SegmentRegistry, schema: Any) -> None:
    for call in (lambda: registry.create(schema, capacity=1), lambda: registry.open_current(schema)):
        with pytest.raises(SchemaError, match="FeatureSchema"):
            call()
    with pytest.raises(ValueError, match="max_id_bytes"):
        registry.create(Scalars, capacity=1, max_id_bytes=70_000)


def test_a_bad_directory_or_connection_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegmentNotFoundError, match="nowhere"):
        SegmentRegistry(tmp_path, shm_dir=tmp_path / "nowhere")
    with pytest.raises(ConnectionFailedError, match="http"):
        SegmentRegistry("http://example.org", shm_dir=tmp_path)
    with pytest.raises(ConnectionFailedError, match="int"):
        SegmentRegistry(5, shm_dir=tmp_path)


def test_another_version_is_refused_at_attach(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=1):
        second = make_schema("Scalars", Scalars.fields, version=2)
        with pytest.raises(SchemaMismatchError, match="Scalars version 1; Scalars version 2 was requested"):
            registry.open_current(second)


def test_a_segment_whose_file_is_gone_says_so(registry: SegmentRegistry) -> None:
    segment = registry.create(Scalars, capacity=1)
    segment.current_view().path.unlink()
    segment.close()
    with pytest.raises(SegmentNotFoundError, match="no such file"):
        registry.open_current(Scalars)
    with registry.create(Scalars, capacity=1) as again:
        assert layout.insert(again, "x", row(1))


def test_creating_again_beside_a_writer_is_refused_and_asks_for_no_upgrade(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=1) as segment:
        stored_before = registry.backend.control.schemas()
        path = segment.current_view().path
    lease = FileLock.try_acquire(path)
    assert lease is not None
    with pytest.raises(WriterLeaseHeldError):
        registry.create(make_schema("Scalars", Scalars.fields, version=2), capacity=1)
    lease.release()
    assert registry.backend.control.schemas() == stored_before


def test_creating_again_replaces_and_readers_follow(registry: SegmentRegistry) -> None:
    first = registry.create(Scalars, capacity=1)
    layout.insert(first, "old", row(1))
    reader = registry.open_current(Scalars)
    old_path = first.current_view().path
    second = registry.create(Scalars, capacity=1)
    layout.insert(second, "new", row(2))
    assert assembly.assemble(reader, "new")[0] == 2
    assert layout.lookup(reader, "old") is None
    assert not old_path.exists()
    with pytest.raises(WriterLeaseHeldError):
        layout.insert(first, "x", row(1))
    second.close()
    assert layout.insert(first, "x", row(1)), "the first handle follows, too, once the lease is free"
    for segment in (first, reader):
        segment.close()


def test_one_writer_at_a_time(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=4) as writer, registry.open_current(Scalars, read_only=False) as other:
        layout.insert(writer, "x", row(1))
        with pytest.raises(WriterLeaseHeldError, match=f"process {os.getpid()}"):
            layout.insert(other, "x", row(2))
        with pytest.raises(WriterLeaseHeldError, match=f"process {os.getpid()}"):
            registry.discard(other)
        writer.release_writer_lease()
        layout.insert(other, "x", row(2))
        assert other.holds_writer_lease
        assert other.stats()["writer_pid"] == os.getpid()
        assert assembly.assemble(writer, "x")[0] == 2


def test_growth_flips_and_a_reader_far_behind_finds_the_newest(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=1) as writer, registry.open_current(Scalars) as reader:
        layout.insert(writer, "x", row(5))
        names = []
        for _ in range(4):
            names.append(writer.name)
            grow(writer, rows=True, heap_bytes=0)
        assert reader._view.name == names[0]
        assert not any((reader._view.path.parent / name).exists() for name in names)
        assert assembly.assemble(reader, "x")[0] == 5
        assert reader.name == writer.name
        assert writer.capacity == 16
        with registry.open_current(Scalars) as fresh:
            assert fresh.name == writer.name


def test_the_position_moves_with_growth(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=1) as writer, registry.open_current(Scalars) as reader:
        writer.commit_position(2**62, 17)
        for i in range(5):
            layout.insert(writer, str(i), row(i))
        assert (reader.position, reader.log_identity) == (2**62, 17)


def test_growth_without_memory_is_a_clear_error_and_loses_nothing(
    registry: SegmentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with registry.create(Scalars, capacity=1) as writer:
        layout.insert(writer, "x", row(1))
        monkeypatch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(CapacityExceededError, match=r"cannot grow.*No space left"):
            layout.insert(writer, "y", row(2))
        assert assembly.assemble(writer, "x")[0] == 1
        monkeypatch.undo()
        assert layout.insert(writer, "y", row(2))
        assert not list(writer.current_view().path.parent.glob("*.pending"))


def test_a_writer_that_was_overtaken_is_fenced(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=4) as writer:
        layout.insert(writer, "x", row(1))
        writer.current_view().header["epoch"] += 1
        with pytest.raises(WriterFencedError, match="epoch 1 was followed by 2"):
            layout.insert(writer, "x", row(2))
        assert assembly.assemble(writer, "x")[0] == 1


WRITER = """
import sys
import numpy as np, pyarrow as pa
from quorin import layout
from quorin.shm import Segment, SegmentRegistry
from tests.support.schemas import Scalars
segment = SegmentRegistry(sys.argv[1], shm_dir=sys.argv[2]).open_current(Scalars, read_only=False)
ids = pa.array([f"id{i}" for i in range(200)])
segment.acquire_writer_lease()
first = version = segment.stats()["writer_epoch"] * 10**6
while True:
    version += 1
    column = np.full(200, version % 2**20, np.float32)
    layout.insert_many(segment, pa.table({"entity_id": ids, "event_time_ns": np.full(200, version),
                                          "a": column, "b": column, "c": column, "d": column}))
    if version == first + 1:
        print("ready", flush=True)  # All ids are there, and it goes on writing.
"""


def start_writer(registry_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(registry_path / "control"), str(registry_path / "shm")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def test_a_killed_writer_leaves_whole_rows_and_the_next_takes_over_at_once(
    registry: SegmentRegistry, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    ids = pa.array([f"id{i}" for i in range(200)])
    with registry.create(Scalars, capacity=10) as segment, registry.open_current(Scalars) as reader:
        segment.release_writer_lease()
        for _ in range(3):
            writer = start_writer(tmp_path)
            time.sleep(0.05 + 0.1 * rng.random())
            writer.send_signal(signal.SIGKILL)
            vectors, found = assembly.assemble_batch(reader, ids)
            assert (vectors[found] == vectors[found][:, :1]).all(), "a torn row"
            writer.communicate()
            assert writer.returncode == -signal.SIGKILL
            segment.acquire_writer_lease()
            stats = segment.stats()
            occupied = dict(layout.iterate_occupied(segment))
            assert stats["rows"] == len(occupied)
            assert unreferenced_rows(segment) == free_rows(segment), "no row leaks"
            segment.release_writer_lease()


def unreferenced_rows(segment: Any) -> int:
    return int(segment.current_view().header["rows_fresh"]) - len(segment) - segment.stats()["deleted_rows"]


def free_rows(segment: Any) -> int:
    header = segment.current_view().header
    return int(header["ring_tail"]) - int(header["ring_head"])


def test_a_stopped_writer_does_not_block_readers(registry: SegmentRegistry, tmp_path: Path) -> None:
    ids = pa.array([f"id{i}" for i in range(200)])
    with registry.create(Scalars, capacity=300) as segment, registry.open_current(Scalars) as reader:
        segment.release_writer_lease()
        writer = start_writer(tmp_path)
        try:
            for _ in range(20):
                time.sleep(0.01)
                writer.send_signal(signal.SIGSTOP)
                vectors, found = assembly.assemble_batch(reader, ids)
                assert (vectors[found] == vectors[found][:, :1]).all()
                with pytest.raises(WriterLeaseHeldError, match=f"process {writer.pid}"):
                    segment.acquire_writer_lease()
                writer.send_signal(signal.SIGCONT)
        finally:
            writer.kill()
            writer.communicate()


def test_a_frozen_writer_is_overtaken_and_fenced_when_it_wakes(registry: SegmentRegistry, tmp_path: Path) -> None:
    with registry.create(Scalars, capacity=300) as segment, registry.open_current(Scalars) as reader:
        layout.insert(segment, "mine", row(7))
        segment.release_writer_lease()
        sleeper = start_writer(tmp_path)
        try:
            sleeper.send_signal(signal.SIGSTOP)
            before = segment.name
            segment.overtake_writer()
            assert segment.name != before
            layout.insert(segment, "mine", row(8))
            sleeper.send_signal(signal.SIGCONT)
            assert sleeper.stderr is not None
            assert "WriterFencedError" in sleeper.stderr.read()
            assert sleeper.wait() == 1
            assert assembly.assemble(reader, "mine")[0] == 8
            vectors, found = assembly.assemble_batch(reader, [f"id{i}" for i in range(200)])
            assert found.all()
            assert (vectors == vectors[:, :1]).all()
            layout.insert(segment, "mine", row(9))
            assert assembly.assemble(reader, "mine")[0] == 9
            assert reader.name == segment.name
        finally:
            sleeper.kill()
            sleeper.communicate()


def test_of_two_that_flip_one_is_too_late(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=4) as writer:
        layout.insert(writer, "x", row(1))
        late = registry.create_successor(writer, Scalars, capacity=4)
        grow(writer, rows=False, heap_bytes=0)
        with registry.open_current(Scalars, read_only=False) as current:
            assert current.name == writer.name
        stale = Segment(writer.current_view(), None, read_only=False)
        grow(writer, rows=True, heap_bytes=0)
        with pytest.raises(WriterFencedError, match="overtaken"):
            stale._flip(stale._view, late.current_view())
        assert not late.current_view().path.exists()
        assert assembly.assemble(writer, "x")[0] == 1


def test_an_attempt_that_never_came_into_force_is_not_followed(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=1) as writer, registry.open_current(Scalars) as reader:
        layout.insert(writer, "x", row(5))
        grow(writer, rows=True, heap_bytes=0)
        grow(writer, rows=True, heap_bytes=0)
        orphan = registry.create_successor(writer, Scalars, capacity=1)
        assert assembly.assemble(reader, "x")[0] == 5
        assert reader.name == writer.name < orphan.name
        registry.discard(orphan)


def test_a_child_of_a_dead_writer_does_not_hold_its_lease(registry: SegmentRegistry, tmp_path: Path) -> None:
    code = """
import os, sys, time
from quorin.shm import Segment, SegmentRegistry
from tests.support.schemas import Scalars
segment = SegmentRegistry(sys.argv[1], shm_dir=sys.argv[2]).open_current(Scalars, read_only=False)
segment.acquire_writer_lease()
ready, child_is_up = os.pipe()
child = os.fork()
if child == 0:
    os.write(child_is_up, b"x")
    time.sleep(60)
os.read(ready, 1)
print(child, flush=True)
os.kill(os.getpid(), 9)
"""
    with registry.create(Scalars, capacity=1) as segment:
        segment.release_writer_lease()
        command = [sys.executable, "-c", code, str(tmp_path / "control"), str(tmp_path / "shm")]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
        parent.stdout.close()
        segment.acquire_writer_lease()
        os.kill(child, signal.SIGKILL)


def test_a_segment_that_cannot_be_published_while_redis_is_away_is_discarded(tmp_path: Path) -> None:
    server = RedisServer()
    try:
        registry = SegmentRegistry(server.url, shm_dir=tmp_path)
        segment = registry.create(Scalars, capacity=1, set_current=False)
        server.kill()
        with pytest.raises(ConnectionFailedError):
            registry.publish(segment, replacing=None)
        assert not list(tmp_path.glob("quorin_*"))
        assert registry.node.current("Scalars") is None
    finally:
        server.stop()


def test_a_registry_releases_the_leases_of_its_own_segments_alone(registry: SegmentRegistry) -> None:
    other = SegmentRegistry(registry.backend, shm_dir=registry.shm_dir)
    with registry.create(Scalars, capacity=4) as segment:
        segment.acquire_writer_lease(applies_upgrades=True)
        other.release_lease(segment.name)
        registry.release_lease("quorin_Scalars_" + 20 * "0")
        registry.release_lease(segment.name, of_consumers=False)
        assert segment.holds_writer_lease
        registry.release_lease(segment.name)
        assert not segment.holds_writer_lease
        with other.open_current(Scalars, read_only=False) as writer:
            writer.acquire_writer_lease()
            with pytest.raises(WriterLeaseHeldError, match=rf"process {os.getpid()}\b.*release_writer_lease\(\)"):
                registry.create(Scalars, capacity=4)
            with pytest.raises(WriterLeaseHeldError, match=r"release_writer_lease\(\)"):
                registry.discard(registry.open_current(Scalars, read_only=False))
            assert layout.insert(writer, "still the writer", row(1))
