"""Reads that ask for a token: shown, late, of another log, across growth, upgrades, processes and wiped logs."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from quorin import assembly, serving
from quorin.engine.backend import connect
from quorin.engine.reads import waiting
from quorin.errors import NotYetAppliedError, TokenError
from quorin.evolution import upgrade_schema
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import Token, WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.consumers import ROW, consume, kill, start
from tests.support.freezing import freeze

STOP = make_schema("Stop", [FeatureField("count", dtype.float32)])
OTHER = make_schema("Other", [FeatureField("count", dtype.float32)])
LONG_MS = 60_000


class World:
    """A deployment on one node: a segment of ``STOP`` open for reading, a producer, a consumer that applies on call."""

    def __init__(self, connection: str, shm_dir: Path) -> None:
        shm_dir.mkdir()
        self.backend = connect(connection)
        self.registry = SegmentRegistry(self.backend, shm_dir=shm_dir)
        self.registry.create(STOP, capacity=4).close()
        self.segment = self.registry.open_current(STOP)
        self.producer = WALProducer(self.backend, registry=self.registry)
        self.consumer = WALConsumer(self.backend, [STOP], registry=self.registry)

    def write(self, entity_id: str = "a", count: float = 1, schema: Any = STOP) -> Token:
        return self.producer.write(schema, entity_id, {"count": count})

    def close(self) -> None:
        self.consumer.stop()
        self.producer.close()
        self.segment.close()
        self.backend.close()


@pytest.fixture(params=["embedded", "redis"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    embedded = request.param == "embedded"
    made = World(str(tmp_path / "store") if embedded else request.getfixturevalue("redis_url"), tmp_path / "shm")
    yield made
    made.close()


READS: dict[str, Callable[..., Any]] = {
    "read": lambda segment, **asked: assembly.read(segment, ["a"], **asked)["count"][0].as_py(),
    "read by the oracle": lambda segment, **asked: serving.read(segment, ["a"], **asked)["count"][0].as_py(),
    "assemble": lambda segment, **asked: assembly.assemble(segment, "a", **asked)[0],
    "assemble by the oracle": lambda segment, **asked: serving.assemble(segment, "a", **asked)[0],
    "a batch": lambda segment, **asked: assembly.assemble_batch(segment, ["a"], **asked)[0][0, 0],
    "a batch by the oracle": lambda segment, **asked: serving.assemble_batch(segment, ["a"], **asked)[0][0, 0],
    "a reader's batch": lambda segment, **asked: assembly.reader(segment).batch(["a"], **asked)[0][0, 0],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_read_shows_what_its_token_covers_or_says_what_it_lacks(
    registry: SegmentRegistry, read: Callable[..., Any]
) -> None:
    producer, consumer = WALProducer(registry.backend), WALConsumer(registry.backend, [STOP], registry=registry)
    with registry.create(STOP, capacity=4) as segment:
        token = producer.write(STOP, "a", {"count": 1})
        with pytest.raises(
            NotYetAppliedError, match="was not applied within 0 ms by this node, which is at position 0"
        ):
            read(segment, at_least=token, timeout_ms=0)
        segment.release_writer_lease()
        consumer.drain()
        assert read(segment, at_least=token) == read(segment, at_least=token.text, timeout_ms=0) == 1
        applied = segment.position
        token = producer.write(STOP, "a", {"count": 2})
        with pytest.raises(NotYetAppliedError) as caught:
            read(segment, at_least=token, timeout_ms=20)
        late = caught.value
        assert (late.schema_name, late.position, late.applied, late.timeout_ms) == ("Stop", token, applied, 20)
        assert str(pickle.loads(pickle.dumps(late))) == str(late)
        consumer.drain()
        assert read(segment, at_least=token) == 2
        consumer.stop()
    registry.discard(registry.open_stored("Stop"))


def test_what_is_no_token_or_time_is_refused(registry: SegmentRegistry) -> None:
    with registry.create(STOP, capacity=4) as segment:
        for wrong in (5, "now", b"q1"):
            with pytest.raises(TokenError, match=f"expected the token of a write, .* got {wrong!r}"):
                assembly.read(segment, ["a"], at_least=wrong)  # type: ignore[arg-type]
        for timeout in (-1, float("nan"), float("inf"), "100", None, True):
            with pytest.raises(ValueError, match=f"timeout_ms: expected a number .* from 0, got {timeout!r}"):
                assembly.read(segment, ["a"], at_least=Token(), timeout_ms=timeout)  # type: ignore[arg-type]
        assert assembly.read(segment, ["a"], at_least=Token(), timeout_ms=0).num_rows == 1, "a write of no rows"
        registry.discard(segment)


def test_a_waiting_read_goes_on_when_another_thread_applies(world: World) -> None:
    token = world.write(count=7)
    found: list[Any] = []
    reading = threading.Thread(
        target=lambda: found.append(assembly.read(world.segment, ["a"], at_least=token, timeout_ms=LONG_MS))
    )
    reading.start()
    assert world.consumer.drain() == 1
    reading.join(60)
    assert found[0]["count"].to_pylist() == [7]


def test_entries_of_other_schemas_move_a_segment_on(world: World) -> None:
    world.registry.create(OTHER, capacity=4).close()
    token = world.write(schema=OTHER)
    world.consumer.drain()
    assert assembly.read(world.segment, ["a"], at_least=token)["found"].to_pylist() == [False]


def test_a_token_holds_across_growth_and_an_upgrade(world: World) -> None:
    token = Token()
    for number in range(40):
        token = Token.covering(token, world.write(f"id{number}", number))
    world.consumer.drain()
    grown = assembly.read(world.segment, ["id39"], at_least=token)
    assert grown["count"].to_pylist() == [39]
    assert world.segment.capacity > 4
    newer = make_schema("Stop", [*STOP.fields, FeatureField("more", dtype.int64)], version=2)
    upgrade_schema(STOP, newer, world.registry)
    assert assembly.read(world.segment, ["id39"], at_least=token)["count"].to_pylist() == [39]
    token = world.producer.write(newer, "id39", {"count": 40, "more": 1})
    world.consumer.drain()
    assert assembly.read(world.segment, ["id39"], at_least=token)["count"].to_pylist() == [40]


def test_a_token_of_another_deployment_is_refused_by_name(world: World, tmp_path: Path) -> None:
    with WALProducer(str(tmp_path / "elsewhere")) as elsewhere:
        older = elsewhere.write(STOP, "a", {"count": 1})
        world.write()
        world.consumer.drain()
        # An older one is refused at once; the segment might be about to follow the log of a newer one.
        newer = elsewhere.write(STOP, "a", {"count": 1})
    for token, timeout_ms in ((older, LONG_MS), (newer, 10)):
        with pytest.raises(TokenError, match=f"{token.text} is of another log than 'Stop' follows .*deployment"):
            assembly.read(world.segment, ["a"], at_least=token, timeout_ms=timeout_ms)


def test_a_token_of_a_wiped_log_is_refused_and_the_next_one_holds(redis_url: str, tmp_path: Path) -> None:
    world = World(redis_url, tmp_path / "shm")
    lost = world.write(count=1)
    world.consumer.drain()
    assert assembly.assemble(world.segment, "a", at_least=lost) == [1]
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert assembly.assemble(world.segment, "a", at_least=lost) == [1], "this node still shows it"
    token = world.write(count=2)
    assert token.parts[0][0] != lost.parts[0][0]
    found: list[Any] = []
    reading = threading.Thread(  # The segment follows the old log until its consumer sees the new one.
        target=lambda: found.append(assembly.assemble(world.segment, "a", at_least=token, timeout_ms=LONG_MS))
    )
    reading.start()
    world.consumer.drain()
    reading.join(60)
    assert found == [2]
    with pytest.raises(TokenError, match="or the log was wiped since"):
        assembly.assemble(world.segment, "a", at_least=lost, timeout_ms=LONG_MS)
    world.close()


@pytest.mark.parametrize("partitions", [1, 2])
def test_a_log_that_takes_the_place_of_another_during_a_look_is_not_mixed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitions: int
) -> None:
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path, partitions=partitions)
    with registry.create(STOP, capacity=4) as segment:
        parts: list[Any] = [segment] if partitions == 1 else [*segment.parts()]

        def look(token: Token) -> None:
            """Wait for a token, while the segment comes to follow log 2 between two words that are read of it."""
            for part in parts:
                part.commit_position(40, 1)
            load, loads = waiting._load_acquire, []

            def loading(address: int) -> int:
                found = load(address)
                loads.append(address)
                if len(loads) == 1:
                    for part in parts:
                        part.commit_position(60, 2)
                return found

            with monkeypatch.context() as patched:
                patched.setattr(waiting, "_load_acquire", loading)
                assembly.wait_for(segment, token, timeout_ms=0)
            assert loads

        if partitions == 1:  # Of several, a log that is not known yet is not looked at.
            look(Token((2, 50)))
        with pytest.raises((TokenError, NotYetAppliedError)):
            look(Token((1, 50)))
        registry.discard(segment)


def test_a_log_that_lost_its_end_does_not_show_what_was_in_it(world: World) -> None:
    token = Token((world.write().parts[0][0], 2**62))
    world.consumer.drain()
    with pytest.raises(NotYetAppliedError, match=f"position {2**62} of 'Stop'"):
        assembly.assemble(world.segment, "a", at_least=token, timeout_ms=5)


def test_help_is_asked_for_while_the_token_is_not_shown(registry: SegmentRegistry) -> None:
    producer, consumer = WALProducer(registry.backend), WALConsumer(registry.backend, [STOP], registry=registry)
    with registry.create(STOP, capacity=4) as segment:
        segment.release_writer_lease()
        calls: list[int] = []

        def apply_at_the_third() -> None:
            calls.append(segment.position)
            if len(calls) == 3:
                consumer.drain()

        token = producer.write(STOP, "a", {"count": 1})
        assembly.wait_for(segment, token, timeout_ms=LONG_MS, apply=apply_at_the_third)
        assert calls == [0, 0, 0]
        assembly.wait_for(segment, token, apply=apply_at_the_third)
        assert len(calls) == 3, "what is shown needs no help"
        consumer.stop()
        registry.discard(segment)


def test_tokens_hold_across_processes_and_a_stopped_consumer_is_late(redis_url: str, tmp_path: Path) -> None:
    process = start(consume, redis_url, str(tmp_path), None, {})
    try:
        registry = SegmentRegistry(redis_url, shm_dir=tmp_path)
        registry.create(ROW, capacity=64).close()
        with WALProducer(registry.backend) as producer, registry.open_current(ROW) as segment:
            for number in range(10):
                token = producer.write(ROW, "x", {"number": number, "text": "t"})
                shown = assembly.read(segment, ["x"], at_least=token.text, timeout_ms=LONG_MS)
                assert shown["number"].to_pylist() == [number]
            freeze(process.pid)
            token = producer.write(ROW, "x", {"number": 10, "text": "t"})
            with pytest.raises(NotYetAppliedError) as caught:
                assembly.read(segment, ["x"], at_least=token, timeout_ms=50)
            assert caught.value.applied == segment.position < token
            os.kill(process.pid, signal.SIGCONT)
            shown = assembly.read(segment, ["x"], at_least=token, timeout_ms=LONG_MS)
            assert shown["number"].to_pylist() == [10]
        registry.backend.close()
    finally:
        kill(process)


def test_a_token_holds_on_every_node(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    here, there = World(redis_url, tmp_path / "here" / "shm"), World(redis_url, tmp_path / "there")
    token = here.write(count=3)
    here.consumer.drain()
    assert assembly.assemble(here.segment, "a", at_least=token) == [3]
    with pytest.raises(NotYetAppliedError) as caught:
        assembly.assemble(there.segment, "a", at_least=token.text, timeout_ms=5)
    assert caught.value.applied == there.segment.position < token
    there.consumer.drain()
    assert assembly.assemble(there.segment, "a", at_least=token.text) == [3]
    here.close()
    there.close()


def test_a_reader_waits_for_a_token_at_its_own_time_out(world: World) -> None:
    token, started = world.write(), time.monotonic()
    with pytest.raises(NotYetAppliedError):
        assembly.reader(world.segment).batch(["a"], at_least=token, timeout_ms=30)
    assert time.monotonic() - started >= 0.03
