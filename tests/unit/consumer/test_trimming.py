"""The history is flushed, and the log trimmed behind rows that are applied and durable."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from quorin import metrics
from quorin.engine.counting import counters
from quorin.engine.log.dead_letters import replay
from quorin.engine.log.record import Kind
from quorin.engine.ops import presence
from quorin.offline import ParquetDatasetStore
from quorin.schema import schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal_consumer import NoopOfflineWriter, OfflineWriter, WALConsumer
from tests.support.world import STOP, TRIP, World, row, running, until


class History:
    """An offline writer that remembers, and knows what is durable."""

    def __init__(self) -> None:
        self.appended: list[tuple[str, Kind, list[dict[str, Any]], list[int]]] = []
        self.durable = 0

    def append(self, schema: Any, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert) -> None:
        self.appended.append((schema.__name__, kind, batch.to_pylist(), positions.to_pylist()))

    def flush(self) -> None:
        self.durable = max((p for *_, positions in self.appended for p in positions), default=0)

    def flushed_position(self, schema: Any) -> int | None:  # noqa: ARG002 - the same for all
        return self.durable


def test_a_history_that_cannot_be_written_is_named_and_tried_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = metrics.flush_failures.labels(counters.EVERYWHERE)
    before = failures.value
    obstacle = tmp_path / "file"
    obstacle.touch()
    history = ParquetDatasetStore(obstacle / "history")
    world.producer.write(TRIP, "a", row(1), 1)
    consumer = world.consumer(offline=history, flush_interval_seconds=0.01)
    running = threading.Thread(target=consumer.run)
    running.start()
    said = ""
    try:
        until(lambda: world.registry.node.current("Trip") is not None and world.rows("a") == [row(1)])
        time.sleep(1.5)
        said = capsys.readouterr().err
        obstacle.unlink()
        until(lambda: history.flushed_position(TRIP) == world.log.bounds().last)
    finally:
        consumer.stop()
        running.join()
        consumer.close()
    assert said.count("history_unavailable") == 1, said
    assert capsys.readouterr().err.count("available_again") == 1
    assert f"the history at {obstacle}" in said
    assert "log_unreachable" not in said
    assert failures.value > before


class HeldHistory(ParquetDatasetStore):
    """Its flushes wait until they are let go."""

    def hold(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()

    def flush(self) -> None:
        self.begun.set()
        assert self.let_go.wait(60)
        super().flush()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldHistory]:
    history = HeldHistory(tmp_path / "history")
    history.hold()
    yield history
    history.let_go.set()


def test_rows_are_applied_while_the_history_is_flushed(world: World, held: HeldHistory) -> None:
    with running(world.consumer(offline=held, flush_interval_seconds=0)):
        first = world.producer.write_sync(TRIP, "a", row(1), timeout_ms=60_000)
        assert held.begun.wait(60)
        second = world.producer.write_sync(TRIP, "a", row(2), timeout_ms=60_000)
        assert world.rows("a") == [row(2)]
        assert held.flushed_position(TRIP) == 0
        assert world.log.bounds().trimmed < first
        held.let_go.set()
        until(lambda: world.log.bounds().trimmed == second)
    assert held.flushed_position(TRIP) == second


def test_what_a_flush_covers_is_not_trimmed_once_the_lease_changed(world: World, held: HeldHistory) -> None:
    with running(world.consumer(offline=held, flush_interval_seconds=0)):
        world.producer.write_sync(TRIP, "a", row(1), timeout_ms=60_000)
        assert held.begun.wait(60)
        holder = world.log.historian()
        assert holder is not None
        world.log.acquire_historian("consumer:another:x", 600_000, replacing=holder[0])
        held.let_go.set()
        until(lambda: held.flushed_position(TRIP) == world.log.bounds().last)
    assert world.log.bounds().trimmed == 0
    assert world.log.release_historian("consumer:another:x")


def test_a_consumer_that_stops_waits_for_the_flush_that_goes_on(world: World, held: HeldHistory) -> None:
    consumer = world.consumer(offline=held, flush_interval_seconds=0)
    with running(consumer):
        world.producer.write_sync(TRIP, "a", row(1), timeout_ms=60_000)
        assert held.begun.wait(60)
        last = world.producer.write_sync(TRIP, "a", row(2), timeout_ms=60_000)
        consumer.stop()
        held.let_go.set()
    assert held.flushed_position(TRIP) == world.log.bounds().trimmed == last


def test_without_history_the_log_keeps_everything(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    assert len(world.log.read(0).entries) == 1


def test_the_log_is_trimmed_behind_what_is_applied_and_durable(world: World) -> None:
    history: OfflineWriter = History()
    first = world.producer.write(TRIP, "a", row(1), 1)
    second = world.producer.delete(TRIP, "a", 2)
    world.drain(offline=history)
    assert isinstance(history, History)
    assert [(kind, positions) for _, kind, _, positions in history.appended] == [
        (Kind.upsert, [first]),
        (Kind.delete, [second]),
    ]
    assert world.log.bounds().first == 0
    assert world.log.bounds().trimmed == second


def test_what_was_applied_but_is_not_durable_goes_into_the_history_again(world: World) -> None:
    first = world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    history = History()
    world.drain(offline=history)
    assert [positions for *_, positions in history.appended] == [[first]]
    assert world.position() == first


def test_a_historian_whose_lease_another_took_trims_no_more(world: World) -> None:
    consumer = world.consumer(TRIP, offline=NoopOfflineWriter(), flush_interval_seconds=0.02)
    running = threading.Thread(target=consumer.run)
    running.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), timeout_ms=60_000)
        until(lambda: world.log.bounds().first == 0)
        held = world.log.historian()
        assert held is not None
        assert held[0].startswith(f"consumer:{world.registry.node.id}:")
        assert world.log.acquire_historian("consumer:another:x", 600_000, replacing=held[0])
        kept = world.producer.write_sync(TRIP, "a", row(2), timeout_ms=60_000)
        world.producer.write_sync(TRIP, "a", row(3), timeout_ms=60_000)
        time.sleep(0.3)
        assert world.log.bounds().first == kept
    finally:
        consumer.stop()
        running.join()
        consumer.close()
    assert world.log.bounds().first == kept
    assert world.log.release_historian("consumer:another:x"), "a historian ends no other's lease"


def test_other_schemas_entries_are_not_trimmed(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.producer.write(STOP, "a", {"count": 1}, 1)
    world.drain(STOP)
    world.drain(TRIP, offline=NoopOfflineWriter())
    assert len(world.log.read(0).entries) == 2
    world.drain(TRIP, STOP, offline=NoopOfflineWriter())
    assert world.log.read(0).entries == []


def test_what_nobody_applies_is_kept_aside_before_it_is_trimmed(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    stray = world.producer.write(STOP, "a", {"count": 1}, 1)
    world.drain(TRIP, offline=NoopOfflineWriter())
    assert world.log.bounds().first == 0
    (letter,) = world.log.dead_letters()
    assert letter.position == stray
    assert "schema 'Stop' is unknown to the control plane" in letter.reason
    world.backend.control.put_schema("Stop", schema_to_json(STOP))
    replay(world.log, letter)
    assert world.drain(TRIP, STOP, offline=NoopOfflineWriter()) == 1
    assert world.rows("a", schema=STOP) == [{"count": 1}]
    assert world.log.dead_letters() == []


def test_history_is_flushed_by_rows(world: World) -> None:
    history = History()
    consumer = world.consumer(offline=history, flush_interval_seconds=3600, flush_rows=10)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        ids = [f"id{i}" for i in range(10)]
        table = pa.table({"entity_id": ids, "score": [1.0] * 10, "tag": ["x"] * 10})
        position = world.producer.write_many(TRIP, table)
        until(lambda: history.durable == position)
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()


def report(world: World, node: str, position: int) -> None:
    """What a consumer of another node reports."""
    schemas = {"Trip": {"segment": "s", "version": 1, "position": position, "lag_seconds": 0.0}}
    presence.announce(world.backend.control, "consumer", node, schemas)


def test_entries_that_a_live_node_lacks_stay(world: World) -> None:
    positions = [world.producer.write(TRIP, f"e{number}", row(number)) for number in range(3)]
    report(world, "other", positions[0])
    world.drain(offline=NoopOfflineWriter())
    assert [position for position, _ in world.log.read(0).entries] == positions[1:]
    presence.withdraw(world.backend.control)
    world.drain(offline=NoopOfflineWriter())
    assert len(world.log.read(0).entries) == 2, "a node whose consumer restarts is waited for"
    report(world, "other", positions[2])
    world.drain(offline=NoopOfflineWriter())
    assert world.log.read(0).entries == []


def test_a_silent_node_is_not_waited_for(world: World) -> None:
    position = world.producer.write(TRIP, "a", row(1))
    report(world, "other", 0)
    world.drain(offline=NoopOfflineWriter())
    assert [at for at, _ in world.log.read(0).entries] == [position]
    time.sleep(0.05)
    world.drain(offline=NoopOfflineWriter(), node_timeout_seconds=0.01)
    assert world.log.read(0).entries == []


def test_a_consumer_that_freezes_before_it_trims_and_is_overtaken_trims_nothing(world: World) -> None:
    """The one that overtakes copies rows; the entries that it applies again must stay."""
    frozen = world.consumer(TRIP, offline=NoopOfflineWriter())
    frozen._take(waiting=False)
    frozen._check()
    kept = world.producer.write(TRIP, "a", row(1))
    frozen._read(block_ms=0)
    trim, other = world.log.trim, world.consumer(TRIP, frozen_after_seconds=0)

    def after_a_while(through: int, **options: Any) -> int:
        frozen._ownership.targets[0].opened.writing_view()
        other._take(waiting=False)
        return trim(through, **options)

    frozen._lanes.only.trimming._log.trim = after_a_while  # type: ignore[method-assign]
    frozen._flusher.flush(frozen._agenda)
    assert [position for position, _ in world.log.read(0).entries] == [kept]
    assert world.log.historian() is None, "one that needs no lease keeps none"
    other.close()
    frozen.close()


def test_of_two_nodes_one_writes_the_history_and_the_other_goes_on_when_it_ends(world: World, tmp_path: Path) -> None:
    node = tmp_path / "other node"
    node.mkdir()
    other = SegmentRegistry(world.backend, shm_dir=node)
    histories = [History(), History()]
    first, second = (
        WALConsumer(world.backend, None, registry=registry, offline=history)
        for registry, history in zip([world.registry, other], histories, strict=True)
    )
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    positions = [world.producer.write(TRIP, "a", row(1))]
    for consumer in (first, second):
        consumer._look()
        consumer._take(waiting=False)
        consumer._check()
        consumer._read(block_ms=0)
    assert [written(history) for history in histories] == [positions, []]
    positions.append(world.producer.write(TRIP, "b", row(2)))
    for consumer in (second, first):
        consumer._read(block_ms=0)
    assert [written(history) for history in histories] == [positions, []]
    assert world.log.release_historian(first._lanes.only.historian.name), "as when it dies, and its time is over"
    second._flusher.flush(second._agenda)
    assert world.log.bounds().first == positions[0], "what is applied here is not all in the history"
    positions.append(world.producer.write(TRIP, "c", row(3)))
    second._read(block_ms=0)
    assert written(histories[1]) == [], "nothing behind a gap"
    histories[1].durable = positions[0]  # The history is one: the first flushed this much of it.
    second._check()
    second._read(block_ms=0)
    assert written(histories[1]) == positions[1:], "from where the history is durable, applied before or not"
    for consumer in (first, second):
        consumer._finish()
        consumer.close()


def test_a_consumer_takes_the_history_over_from_a_follower_and_from_a_dead_one_of_its_node(world: World) -> None:
    world.producer.write(TRIP, "a", row(1))
    for holder in ("follower:another:x", f"consumer:{world.registry.node.id}:x"):
        assert world.log.acquire_historian(holder, 600_000)
        history = History()
        world.drain(offline=history)
        assert world.log.historian() is None
        world.producer.write(TRIP, "a", row(2))
    assert world.log.acquire_historian("follower:another:x", 600_000)
    world.drain(offline=NoopOfflineWriter())
    assert world.log.historian() is not None, "one without a history must not end another's"
    assert world.log.bounds().first > 0


def written(history: History) -> list[int]:
    return sorted({position for *_, positions in history.appended for position in positions})
