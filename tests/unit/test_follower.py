"""The thread that follows the log: it ends with its object, survives errors, and yields. ``test_fleet`` has more."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from quorin import follower as module
from quorin.engine import kernels
from quorin.engine.consumer.precedence import take_turn
from quorin.engine.memory.lock import FileLock, is_locked
from quorin.errors import NotPicklableError
from quorin.follower import Follower
from quorin.shm import SegmentRegistry
from tests.support.world import until


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SegmentRegistry]:
    (tmp_path / "shm").mkdir()
    opened = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path / "shm")
    yield opened
    opened.backend.close()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "quorin-follower"]


def test_it_applies_until_it_is_stopped_and_starts_again(registry: SegmentRegistry) -> None:
    before = len(threads())
    follower = Follower(registry)
    assert not follower.applies
    for _ in range(2):
        with follower:
            follower.start()
            until(lambda: follower.applies)
            assert len(threads()) == before + 1
            assert take_turn(registry.node) is None
        assert not follower.applies
        lock = take_turn(registry.node)
        assert lock is not None, "its lock is free"
        lock.release()
    assert len(threads()) == before


def test_its_thread_ends_with_it(registry: SegmentRegistry) -> None:
    before = len(threads())
    _start(registry)
    gc.collect()
    until(lambda: len(threads()) == before)


def _start(registry: SegmentRegistry) -> None:
    follower = Follower(registry)
    follower.start()
    until(lambda: follower.applies)


def test_an_error_is_reported_once_and_it_goes_on(registry: SegmentRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fail_at_first(node: Any, **options: Any) -> FileLock | None:
        calls.append(1)
        if len(calls) < 4:
            raise RuntimeError("unforeseen")
        return take_turn(node, **options)

    monkeypatch.setattr(module, "take_turn", fail_at_first)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    with capture_logs() as logged, Follower(registry) as follower:
        until(lambda: follower.applies)
    (failure,) = [entry for entry in logged if entry["event"] == "follower_failed"]
    assert "unforeseen" in failure["error"]


def test_it_waits_while_a_consumer_has_claimed_the_node(registry: SegmentRegistry) -> None:
    claim = FileLock.try_acquire(registry.node.lock_path("consumer"))
    assert claim is not None
    assert take_turn(registry.node) is None
    with Follower(registry) as follower:
        claim.release()
        until(lambda: follower.applies)


def test_while_it_waits_it_loads_what_applying_needs(
    registry: SegmentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREPARE_SECONDS", 0.0)
    monkeypatch.delitem(vars(kernels), "apply_rows", raising=False)
    lock = take_turn(registry.node)
    assert lock is not None
    with Follower(registry) as follower:
        follower.start()
        until(lambda: "apply_rows" in vars(kernels))
        assert not follower.applies
    lock.release()


def test_those_that_look_at_the_same_moment_do_not_take_each_other_for_a_consumer(registry: SegmentRegistry) -> None:
    path = registry.node.lock_path("consumer")
    looking = FileLock.try_acquire(path, shared=True)
    assert looking is not None
    assert not is_locked(path)
    assert FileLock.try_acquire(path) is None, "a consumer tries again"
    looking.release()


def test_it_cannot_be_pickled(registry: SegmentRegistry) -> None:
    with pytest.raises(NotPicklableError, match="make one in the other process"):
        pickle.dumps(Follower(registry))
