"""A consumer writes snapshots beside applying, and starts a new segment from them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.backend import Beginning
from quorin.engine.bootstrap.names import FROM_THE_START
from quorin.engine.bootstrap.writer import SnapshotWriter
from quorin.errors import SnapshotUnavailableError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from quorin.snapshot import SnapshotStore
from quorin.wal_consumer import WALConsumer
from tests.support.machines import Machine
from tests.support.world import until

Pair = make_schema("Pair", [FeatureField("a", dtype.float64)])


def consumer(machine: Machine, store: SnapshotStore, every: float | None = None) -> WALConsumer:
    return WALConsumer(
        machine.registry.backend, [Pair], registry=machine.registry, snapshots=store, snapshot_every_seconds=every
    )


def test_a_running_consumer_writes_and_a_new_segment_starts_from_the_newest(machine: Machine, tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    machine.producer.write(Pair, "x", {"a": 1.0}, 1)
    running = consumer(machine, store, 0.05)
    thread = threading.Thread(target=running.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not store.snapshots("Pair"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.stop()
    thread.join()
    running.close()
    log = machine.registry.backend.log()
    log.trim(log.bounds().last)  # The rows are in the snapshot alone.
    machine.reboot()
    machine.producer.write(Pair, "y", {"a": 2.0}, 2)
    with consumer(machine, store) as again:
        again.drain()
    assert machine.found(Pair, ["x", "y"]) == [True, True]


def test_nothing_new_is_not_saved_again(machine: Machine, tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    writer = SnapshotWriter(store, machine.registry, lambda: ["Pair"], every_seconds=1e-9)
    assert writer.write_due() == 0  # There is no segment yet.
    machine.producer.write(Pair, "x", {"a": 1.0}, 1)
    machine.drain([Pair])
    assert [writer.write_due(), writer.write_due()] == [1, 0]
    machine.producer.write(Pair, "x", {"a": 2.0}, 2)
    machine.drain([Pair])
    assert writer.write_due() == 1
    other = SnapshotWriter(store, machine.registry, lambda: ["Pair"], every_seconds=3600)
    machine.producer.write(Pair, "x", {"a": 3.0}, 3)
    machine.drain([Pair])
    assert other.write_due() == 0  # Another process wrote one just now.


def test_rows_of_a_schema_that_was_dropped_do_not_come_back(machine: Machine, tmp_path: Path) -> None:
    store, control, log = SnapshotStore(tmp_path / "snapshots"), machine.registry.backend.control, machine.log()
    writer = SnapshotWriter(store, machine.registry, lambda: ["Pair"], every_seconds=1e-9)
    machine.producer.write(Pair, "x", {"a": 1.0}, 1)
    machine.drain([Pair])
    assert writer.write_due() == 1
    assert control.drop_schema("Pair")
    beginning = Beginning(log.identity(), log.bounds().last)
    assert machine.registry.create_schema(Pair, beginning)
    machine.reboot()
    machine.producer.write(Pair, "y", {"a": 2.0}, 2)
    with consumer(machine, store) as again:
        again.drain()
    assert machine.found(Pair, ["x", "y"]) == [False, True]
    assert machine.registry.node.state().beginnings["Pair"] == (beginning.log_identity, beginning.position)
    assert writer.write_due() == 1
    assert [file.beginning for file in store.snapshots("Pair")] == [FROM_THE_START, beginning]
    log.trim(log.bounds().last)
    machine.reboot()
    with consumer(machine, store) as third:
        third.drain()
    assert machine.found(Pair, ["x", "y"]) == [False, True], "the second life's own snapshot"


def test_a_segment_that_is_replaced_while_its_beginning_is_read_is_not_saved(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    writer = SnapshotWriter(store, machine.registry, lambda: ["Pair"], every_seconds=1e-9)
    machine.producer.write(Pair, "x", {"a": 1.0}, 1)
    machine.drain([Pair])
    original = type(machine.registry).open_stored

    def after_a_reboot(registry: SegmentRegistry, name: str, **options: Any) -> Segment:
        monkeypatch.setattr(SegmentRegistry, "open_stored", original)
        machine.reboot()
        machine.drain([Pair])
        return original(registry, name, **options)

    monkeypatch.setattr(SegmentRegistry, "open_stored", after_a_reboot)
    assert (writer.write_due(), store.snapshots("Pair")) == (0, [])


def test_a_failure_that_nobody_foresaw_does_not_end_the_snapshots(machine: Machine, tmp_path: Path) -> None:
    store, names = SnapshotStore(tmp_path / "snapshots"), iter([RuntimeError("changed meanwhile"), ["Pair"]])
    machine.producer.write(Pair, "x", {"a": 1.0}, 1)
    machine.drain([Pair])

    def schema_names() -> list[str]:
        found = next(names, ["Pair"])
        if isinstance(found, Exception):
            raise found
        return found

    with SnapshotWriter(store, machine.registry, schema_names, every_seconds=0.01):
        until(lambda: len(store.snapshots("Pair")) == 1)


def test_an_unreadable_store_never_leads_to_an_empty_segment(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(store: SnapshotStore, schema_name: str) -> None:
        raise SnapshotUnavailableError("access denied")

    monkeypatch.setattr(SnapshotStore, "snapshots", refused)
    store = SnapshotStore(tmp_path / "snapshots")
    with consumer(machine, store) as opened, pytest.raises(SnapshotUnavailableError, match="access denied"):
        opened.drain()
    assert list(machine.shm.glob("quorin_*")) == []
