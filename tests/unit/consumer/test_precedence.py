"""Which process applies on a node: one that is frozen is passed over, and finds that out before it disturbs another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.consumer import precedence
from quorin.engine.consumer.plan import Step
from quorin.engine.consumer.precedence import take_turn
from quorin.engine.memory.lock import FileLock
from quorin.shm import SegmentRegistry
from quorin.wal_consumer import WALConsumer
from tests.support.world import TRIP, World, row

LIMIT = 30.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "shm").mkdir()
    opened = World(str(tmp_path / "store"), tmp_path / "shm")
    yield opened
    opened.producer.close()
    opened.backend.close()


def taken(registry: SegmentRegistry) -> FileLock:
    turn = take_turn(registry.node)
    assert turn is not None
    return turn


def freeze(registry: SegmentRegistry, purpose: str = "applier", seconds: float = LIMIT) -> None:
    """Whoever holds a lock of the node has shown no life for so long."""
    at = time.monotonic_ns() - int(seconds * 1e9)
    os.utime(registry.node.lock_path(purpose), ns=(at, at))


def follower(world: World, turn: FileLock) -> WALConsumer:
    return WALConsumer(world.backend, None, registry=world.registry, turn=turn)


def test_a_follower_that_shows_life_keeps_its_turn(world: World) -> None:
    turn = taken(world.registry)
    freeze(world.registry, seconds=LIMIT - 5)
    assert take_turn(world.registry.node) is None
    freeze(world.registry)
    turn.show_life()
    assert take_turn(world.registry.node) is None
    turn.release()
    taken(world.registry).release()


def test_a_follower_that_is_frozen_loses_its_turn_to_one_other(world: World) -> None:
    frozen = taken(world.registry)
    freeze(world.registry)
    turn = taken(world.registry)
    assert take_turn(world.registry.node) is None
    assert frozen.is_ours
    assert not frozen.is_in_place
    frozen.show_life()
    frozen.release()
    assert turn.is_in_place
    assert take_turn(world.registry.node) is None, "what the other does to its lock concerns nobody"
    freeze(world.registry)
    taken(world.registry).release()
    turn.release()


def test_one_that_never_showed_life_is_not_taken_for_frozen(world: World) -> None:
    """As those of earlier releases, whose files have the time of day at which they were made."""
    turn = FileLock.try_acquire(world.registry.node.lock_path("applier"))
    assert turn is not None
    assert take_turn(world.registry.node, frozen_after_seconds=0) is None
    turn.release()


def test_a_clock_that_is_set_freezes_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, now, now_ns = taken(world.registry), time.time, time.time_ns
    for seconds in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: now() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda seconds=seconds: now_ns() + seconds * 10**9)
        turn.show_life()
        assert take_turn(world.registry.node) is None
    turn.release()


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Sets what others do once, after a process found that nobody applies, and before it decides that."""

    def set_up(happens: Callable[[], None]) -> None:
        real = precedence.lock_if_there

        def lock(path: Path) -> FileLock | None:
            monkeypatch.setattr(precedence, "lock_if_there", real)
            happens()
            return real(path)

        monkeypatch.setattr(precedence, "lock_if_there", lock)

    return set_up


def test_of_two_that_find_the_same_frozen_one_only_one_gets_the_turn(world: World, between: Any) -> None:
    frozen, turns = taken(world.registry), []
    freeze(world.registry)
    between(lambda: turns.append(taken(world.registry)))
    assert take_turn(world.registry.node) is None
    assert turns[0].is_in_place
    turns[0].release()
    frozen.release()


def test_one_that_wakes_before_it_is_decided_keeps_its_turn(world: World, between: Any) -> None:
    turn = taken(world.registry)
    freeze(world.registry)
    between(turn.show_life)
    assert take_turn(world.registry.node) is None
    assert turn.is_in_place
    turn.release()


def test_while_another_decides_nobody_else_does(world: World, between: Any) -> None:
    deciding: list[Any] = []
    between(lambda: deciding.append(FileLock.try_acquire(world.registry.node.lock_path("deciding"))))
    assert take_turn(world.registry.node) is None
    deciding[0].release()
    taken(world.registry).release()


def test_a_consumer_that_is_frozen_is_passed_over_until_it_wakes(world: World) -> None:
    consumer = WALConsumer(world.backend, None, registry=world.registry)
    consumer._look()
    assert take_turn(world.registry.node) is None
    freeze(world.registry, "consumer")
    turn = taken(world.registry)
    other = follower(world, turn)
    other._look()
    assert not other._stop.is_set()
    consumer._look()
    other._look()
    assert other._stop.is_set(), "a consumer goes first"
    turn.release()
    consumer._precedence.release()
    consumer.close()
    other.close()


def test_what_a_frozen_follower_has_read_reaches_nobody_when_it_wakes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is frozen at the worst moment: with entries read, and about to apply them."""
    world.producer.write(TRIP, "a", row(1.0), 1)
    world.drain(TRIP)
    turn = taken(world.registry)
    frozen = follower(world, turn)
    frozen._look()
    frozen._take(waiting=False)
    frozen._check()
    world.producer.write(TRIP, "a", row(2.0), 2)
    apply, happened = frozen._apply, []

    def wake_late(*arguments: Any, **options: Any) -> int:
        if not happened:
            happened.append(True)
            go_on()
        return apply(*arguments, **options)

    def go_on() -> None:
        """What the node does meanwhile."""
        freeze(world.registry)
        with world.registry.open_current(TRIP, read_only=False) as segment:
            segment.current_view().header["writer_heartbeat_ns"] = time.time_ns() - int(LIMIT * 1e9)
        others = taken(world.registry)
        other = follower(world, others)
        world.producer.write(TRIP, "a", row(3.0), 3)
        assert other.drain() == 2
        other.close()
        others.release()

    monkeypatch.setattr(frozen, "_apply", wake_late)
    before = world.registry.node.currents()
    frozen._perform(Step.read, 0)
    assert happened
    assert world.rows("a") == [row(3.0)]
    assert world.registry.node.currents() != before, "the other carried the rows over"
    frozen._perform(Step.look, 0)
    assert frozen._stop.is_set(), "and its turn is over"
    assert frozen._ownership.owned() == []
    frozen.close()
    turn.release()
    assert world.rows("a") == [row(3.0)]
