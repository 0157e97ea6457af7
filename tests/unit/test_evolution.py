"""Upgrades: what they do, what they refuse, and that nobody who reads or writes meanwhile is disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin import layout
from quorin.assembly import assemble, assemble_batch, read
from quorin.engine.backend import connect
from quorin.errors import (
    SchemaMismatchError,
    SegmentNotFoundError,
    SegmentReadOnlyError,
    UpgradeAbortedError,
    UpgradeConflictError,
    UpgradeIncompatibleError,
)
from quorin.evolution import upgrade_schema
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support import upgrades
from tests.support.consumers import kill, start
from tests.support.upgrades import IDS, table, version
from tests.support.world import running

ROOT = Path(__file__).parents[2]


class Place:
    """A control plane and segments, with rows of the first version."""

    def __init__(self, connection: str, tmp_path: Path) -> None:
        self.connection, self.tmp_path = connection, tmp_path
        self.shm_dir = tmp_path / "shm"
        self.shm_dir.mkdir()
        self.registry = SegmentRegistry(connect(connection), shm_dir=self.shm_dir)
        self.control = self.registry.backend.control
        with self.registry.create(version(1), capacity=100) as segment:
            layout.insert_many(segment, table(version(1), 1))

    def counters(self, schema: Any) -> set[float]:
        with self.registry.open_current(schema) as segment:
            return set(read(segment, IDS)["counter"].to_pylist())

    def files(self) -> list[str]:
        return sorted(path.name for path in self.shm_dir.glob("quorin_*"))


@pytest.fixture(params=["embedded", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    connection = str(tmp_path / "store") if request.param == "embedded" else str(request.getfixturevalue("redis_url"))
    opened = Place(connection, tmp_path)
    yield opened
    opened.registry.backend.close()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_upgrade_carries_rows_over_and_says_what_it_did(place: Place) -> None:
    reports: list[tuple[int, int]] = []
    with place.registry.open_current(version(1)) as reader:
        before, name = place.files(), reader.name
        result = upgrade_schema(version(1), version(2), place.registry, progress=lambda *r: reports.append(r))
        assert (result.old_segment_name, result.new_segment_name) == (name, reader.name)
        assert result.entity_count == len(IDS)
        assert result.elapsed_seconds > 0
        assert (result.added, result.widened, result.dropped) == (("new_in_2",), ("counter",), ("new_in_0",))
        assert (result.dry_run, result.new_bytes) == (False, (place.shm_dir / reader.name).stat().st_size)
        assert reports[-1] == (len(IDS), len(IDS))
        assert place.files() == [reader.name] != before
        assert place.registry.node.current("Moving") == reader.name
        assert place.control.schemas()["Moving"] == schema_to_json(version(2))
        assert assemble(reader, IDS[0]).tolist() == [1.0, 1.0, 0.0]
        with place.registry.open_current(version(2)) as newer:
            assert assemble(newer, IDS[0]).tolist() == [1.0, 2.0, 1.0]
            assert newer.schema.version == 2
        again = upgrade_schema(version(1), version(2), place.registry)
        assert again.old_segment_name == again.new_segment_name == reader.name


def test_a_dry_run_tells_and_touches_nothing(place: Place) -> None:
    before = place.files(), place.control.schemas(), place.registry.node.currents()
    told = upgrade_schema(version(1), version(2), place.registry, dry_run=True)
    assert (place.files(), place.control.schemas(), place.registry.node.currents()) == before
    assert (told.dry_run, told.old_segment_name, told.entity_count) == (True, before[0][0], len(IDS))
    assert (told.added, told.widened, told.dropped) == (("new_in_2",), ("counter",), ("new_in_0",))
    done = upgrade_schema(version(1), version(2), place.registry)
    assert (told.old_bytes, told.new_bytes) == (done.old_bytes, done.new_bytes)


def test_what_cannot_be_upgraded_is_refused_and_stays(place: Place) -> None:
    narrow = make_schema("Moving", [FeatureField("counter", dtype.uint8), FeatureField("text", dtype.bytes)], version=2)
    with pytest.raises(UpgradeIncompatibleError, match=r"version 1 to 2: .*'counter'.*'text'") as refused:
        upgrade_schema(version(1), narrow, place.registry)
    assert len(refused.value.reasons) == 2
    with pytest.raises(UpgradeConflictError, match="holds version 1"):
        upgrade_schema(version(2), version(3), place.registry)
    place.control.put_schema("Moving", schema_to_json(version(5)))
    with pytest.raises(UpgradeConflictError, match="neither version 1 as given nor version 2"):
        upgrade_schema(version(1), version(2), place.registry)
    place.control.put_schema("Moving", schema_to_json(version(1)))
    assert place.counters(version(1)) == {1}
    other = make_schema("Nowhere", [FeatureField("a", dtype.int32)])
    with pytest.raises(SegmentNotFoundError):
        upgrade_schema(other, make_schema("Nowhere", list(other.fields), version=2), place.registry)


def test_an_upgrade_that_the_writer_does_not_do_is_given_up(place: Place) -> None:
    holder = start(upgrades.hold_lease, place.connection, str(place.shm_dir), str(place.tmp_path / "ready"))
    until((place.tmp_path / "ready").exists)
    with pytest.raises(UpgradeAbortedError, match=f"process {holder.pid}"):
        upgrade_schema(version(1), version(2), place.registry, timeout_seconds=0.3)
    assert place.control.schemas()["Moving"] == schema_to_json(version(1))
    kill(holder)
    assert place.counters(version(1)) == {1}
    upgrade_schema(version(1), version(2), place.registry)
    assert place.counters(version(2)) == {1}


def test_a_writer_of_this_process_lets_go_and_goes_on(place: Place) -> None:
    with place.registry.open_current(version(1), read_only=False) as writer:
        layout.insert_many(writer, table(version(1), 2))
        assert writer.holds_writer_lease
        upgrade_schema(version(1), version(2), place.registry)
        layout.insert_many(writer, table(version(1), 3))
        assert place.counters(version(2)) == place.counters(version(1)) == {3}


def test_a_writer_of_another_registry_of_this_process_keeps_its_lease(place: Place) -> None:
    other = SegmentRegistry(place.registry.backend, shm_dir=place.shm_dir)
    with other.open_current(version(1), read_only=False) as writer:
        layout.insert_many(writer, table(version(1), 2))
        with pytest.raises(UpgradeAbortedError, match=rf"process {os.getpid()}, .*release_writer_lease\(\)"):
            upgrade_schema(version(1), version(2), place.registry, timeout_seconds=0.3)
        assert writer.holds_writer_lease
        writer.release_writer_lease()
        upgrade_schema(version(1), version(2), place.registry)
        assert place.counters(version(2)) == {2}


@pytest.mark.parametrize("schemas", [None, [version(1)]], ids=["all", "by-name"])
def test_a_running_consumer_does_it_and_applies_both_versions(place: Place, schemas: Any) -> None:
    producer = WALProducer(place.registry.backend, registry=place.registry)
    consumer = WALConsumer(place.registry.backend, schemas, registry=place.registry)
    with running(consumer):
        producer.wait(version(1), producer.write_many(version(1), table(version(1), 2)), timeout_ms=60_000)
        result = upgrade_schema(version(1), version(2), place.registry)
        assert result.entity_count == len(IDS)
        for number, schema in ((3, version(1)), (4, version(2)), (5, version(1))):
            producer.wait(schema, producer.write_many(schema, table(schema, number)), timeout_ms=60_000)
            assert place.counters(version(2)) == place.counters(version(1)) == {number}
        upgrade_schema(version(2), version(3), place.registry)
        producer.wait(version(1), producer.write_many(version(1), table(version(1), 6)), timeout_ms=60_000)
    # Whoever is started later with what it was written for, or without anything left to do, goes on as well.
    producer.write_many(version(1), table(version(1), 7))
    with WALConsumer(place.registry.backend, [version(1)], registry=place.registry) as late:
        assert late.drain() == len(IDS)
    assert place.counters(version(3)) == {7}
    assert place.registry.backend.log().dead_letters() == []
    producer.close()


def test_a_pending_upgrade_is_applied_by_the_next_consumer(place: Place) -> None:
    assert place.control.swap_schema("Moving", schema_to_json(version(2)), expected=schema_to_json(version(1)))
    with WALConsumer(place.registry.backend, [version(1)], registry=place.registry) as consumer:
        consumer.drain()
    assert place.counters(version(2)) == {1}


def test_a_segment_that_was_lost_comes_back_as_the_control_plane_has_it(place: Place) -> None:
    upgrade_schema(version(1), version(2), place.registry)
    for path in place.shm_dir.iterdir():
        path.unlink()
    with WALConsumer(place.registry.backend, [version(1)], registry=place.registry) as consumer:
        consumer.drain()
    assert place.control.schemas()["Moving"] == schema_to_json(version(2))
    with place.registry.open_current(version(2)) as segment:
        assert len(segment) == 0


def test_a_consumer_of_a_newer_version_without_a_pending_upgrade_is_refused(place: Place) -> None:
    with (
        WALConsumer(place.registry.backend, [version(2)], registry=place.registry) as consumer,
        pytest.raises(SchemaMismatchError, match="upgrade the segment first"),
    ):
        consumer.drain()
    assert place.counters(version(1)) == {1}


def test_a_control_plane_that_speaks_of_an_older_version_is_told(place: Place) -> None:
    upgrade_schema(version(1), version(2), place.registry)
    place.control.put_schema("Moving", schema_to_json(version(1)))
    with WALConsumer(place.registry.backend, None, registry=place.registry) as consumer:
        consumer.drain()
    assert place.control.schemas()["Moving"] == schema_to_json(version(2))
    assert place.counters(version(2)) == {1}


def test_two_that_upgrade_at_once_both_return_when_it_is_done(place: Place) -> None:
    results: list[Any] = []

    def upgrade() -> None:
        registry = SegmentRegistry(connect(place.connection), shm_dir=place.shm_dir)
        results.append(upgrade_schema(version(1), version(2), registry))
        registry.backend.close()

    threads = [threading.Thread(target=upgrade) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({result.new_segment_name for result in results}) == 1
    assert len(results) == 3
    assert len(place.files()) == 1


def test_a_pinned_reader_stays_until_it_lets_go(place: Place) -> None:
    with place.registry.open_current(version(1)) as pinned, place.registry.open_current(version(1)) as follower:
        pinned.pin()
        old = pinned.name
        upgrade_schema(version(1), version(2), place.registry)
        with place.registry.open_current(version(2), read_only=False) as writer:
            layout.insert_many(writer, table(version(2), 9))
            with pytest.raises(SegmentReadOnlyError):
                writer.pin()
        assert place.files() == [old, follower.name]
        assert assemble_batch(pinned, IDS)[0].tolist() == [[1.0, 1.0, 1.0]] * len(IDS)
        assert read(pinned, IDS[:1]).to_pylist()[0]["new_in_0"] == 1.0
        assert (pinned.name, pinned.stats()["schema_version"]) == (old, 1)
        assert assemble(follower, IDS[0]).tolist() == [9.0, 9.0, 0.0]
        pinned.unpin()
        assert assemble(pinned, IDS[0]).tolist() == [9.0, 9.0, 0.0]
        assert pinned.name == follower.name
        assert place.files() == [follower.name]


def under_load(place: Place, upgrades_done: int, consumer_follows: bool) -> dict[str, Any]:
    """Upgrade so many times while processes read, write and consume; what they noted."""
    stop, notes = place.tmp_path / "stop", place.tmp_path / "notes"
    ready = place.tmp_path / "ready"
    notes.mkdir()
    ready.mkdir()
    connection, shm_dir = place.connection, str(place.shm_dir)
    consumer = start(upgrades.consume, connection, shm_dir, consumer_follows)
    processes = [
        start(upgrades.produce, connection, str(notes / "writes"), str(stop)),
        *(start(upgrades.look, connection, shm_dir, str(notes / f"reads-{n}"), str(stop)) for n in range(2)),
    ]
    try:
        for number in range(1, upgrades_done + 1):
            # Everybody has read or written once more before the next upgrade, however slow the machine is.
            for path in ready.iterdir():
                path.unlink()
            until(lambda: len(list(ready.iterdir())) == len(processes))
            assert consumer.is_alive()
            upgrade_schema(version(number), version(number + 1), place.registry)
    finally:
        stop.touch()
        for process in processes:
            process.join(60)
    found = {path.name: json.loads(path.read_text()) for path in notes.iterdir()}
    newest = version(upgrades_done + 1)
    with WALProducer(place.registry.backend, registry=place.registry) as producer:
        producer.wait(newest, found["writes"]["position"], timeout_ms=60_000)
    os.kill(consumer.pid, signal.SIGTERM)
    consumer.join(60)
    assert consumer.exitcode == 0
    assert place.counters(newest) == {found["writes"]["number"]}
    assert place.registry.backend.log().dead_letters() == []
    assert place.files() == [place.registry.node.current("Moving")]
    return found


@pytest.mark.parametrize("follows", [True, False], ids=["all", "by-name"])
def test_no_read_fails_and_no_write_is_lost_under_load(place: Place, follows: bool) -> None:
    found = under_load(place, 5, follows)
    for name in ("reads-0", "reads-1"):
        assert found[name]["faults"] == []
        assert found[name]["reads"] >= 5


@pytest.mark.torture
def test_no_read_fails_and_no_write_is_lost_in_a_hundred_upgrades(place: Place) -> None:
    found = under_load(place, 100, True)
    assert [found[f"reads-{n}"]["faults"] for n in range(2)] == [[], []]


def test_killed_at_every_step_the_old_or_the_new_is_in_force() -> None:
    command = [sys.executable, "-m", "tests.support.crash_points", "upgrade", "26"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "upgrade 26\n"


def test_segments_of_every_kind_are_open_for_upgrades_only_by_name(place: Place) -> None:
    with place.registry.open_stored("Moving") as stored:
        assert isinstance(stored, Segment)
        assert schema_to_json(stored.schema) == schema_to_json(version(1))
    with pytest.raises(SegmentNotFoundError, match="Nothing"):
        place.registry.open_stored("Nothing")
