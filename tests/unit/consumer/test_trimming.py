"""The history is flushed, and the log trimmed behind rows that are applied and durable."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from quorin.engine.log.dead_letters import replay
from quorin.engine.log.record import Kind
from quorin.engine.ops import presence
from quorin.offline import ParquetDatasetStore
from quorin.schema import schema_to_json
from quorin.wal_consumer import NoopOfflineWriter, OfflineWriter, WALConsumer
from tests.support.world import STOP, TRIP, World, row, until


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
    assert f"the history at {obstacle}" in said
    assert "log_unreachable" not in said


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


def test_a_consumer_whose_schema_was_claimed_by_another_trims_no_more(world: World) -> None:
    options: dict[str, Any] = {
        "registry": world.registry,
        "offline": NoopOfflineWriter(),
        "flush_interval_seconds": 0.02,
    }
    consumer = WALConsumer(world.backend, [TRIP], **options)
    running = threading.Thread(target=consumer.run)
    running.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), timeout_ms=60_000)
        until(lambda: world.log.bounds().first == 0)
        world.log.claim(["Trip"], "another")
        kept = world.producer.write_sync(TRIP, "a", row(2), timeout_ms=60_000)
        world.producer.write_sync(TRIP, "a", row(3), timeout_ms=60_000)
        time.sleep(0.3)
        assert world.log.bounds().first == kept
    finally:
        consumer.stop()
        running.join()
        consumer.close()
    assert world.log.bounds().first == kept


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


def test_a_consumer_claims_the_log_of_one_that_died_on_another_node(world: World) -> None:
    consumer = world.consumer(offline=NoopOfflineWriter())
    world.producer.write(TRIP, "a", row(1))
    consumer.drain()
    position = world.producer.write(TRIP, "b", row(2))
    # Another node's consumer takes its own segment, claims the log's schemas, and dies.
    world.log.claim(["Trip"], "another")
    owned = consumer._ownership
    take = owned.take
    owned.take = lambda target, *, waiting: _without_claim(owned, lambda: take(target, waiting=waiting))  # type: ignore[method-assign]
    consumer.drain()
    assert [at for at, _ in world.log.read(0).entries] == [position], "refused"
    consumer.drain()
    assert world.log.read(0).entries == []
    consumer.close()


def _without_claim(ownership: Any, act: Any) -> None:
    claims, ownership._claims = ownership._claims, False
    try:
        act()
    finally:
        ownership._claims = claims
