"""The served log when processes are killed: whole files or none, each request in one, and nothing waits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from quorin import metrics
from quorin.engine.counting import counters
from quorin.engine.format import ring as fmt
from quorin.engine.served.ring import ring_file
from tests.support.forking import context, preload
from tests.support.served import (
    STEPS,
    Node,
    collect_and_die,
    collect_until_killed,
    run,
    serve_and_end,
    serve_until_killed,
)
from tests.support.world import until

preload("tests.support.served")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_collector_killed_at_any_step_leaves_whole_files_and_each_request_once(
    tmp_path: Path, step: str, when: str
) -> None:
    node = Node(tmp_path)
    node.fill()
    node.serve(0, 30)
    node.log.close()  # Its thread would collect.
    process = run(collect_and_die, str(tmp_path), step, when)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    written = node.requests()
    assert written in ([], list(range(30)))
    node.serve(30, 10)
    node.log.collect()
    assert sorted(node.requests()) == list(range(40))
    assert list((tmp_path / "served").rglob("*.begun")) == []


def test_a_writer_killed_at_any_moment_leaves_whole_records(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    for _ in range(4):
        ready = context.Event()
        process = run(serve_until_killed, str(tmp_path), ready)
        assert ready.wait(60)
        process.kill()
        process.join(60)
        before = len(node.requests())
        node.log.collect()
        requests = node.requests()[before:]
        assert len(requests) >= 100
        assert requests == list(range(len(requests)))


def test_a_record_that_a_dead_process_had_begun_is_counted(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    child = os.fork()
    if not child:
        node.serve(0, 3)
        own = ring_file(node.log.path).own_ring()
        own._words[fmt.RING_BEGUN // 8] += 64  # As in the middle of the next record.
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    lost = metrics.served_lost.labels(counters.EVERYWHERE)
    before = lost.value
    assert node.log.collect() > 0
    assert node.requests() == [0, 1, 2]
    assert lost.value == before + 1
    assert list(ring_file(node.log.path).rings()) == []


def test_another_process_goes_on_when_the_collector_is_killed(tmp_path: Path) -> None:
    first = Node(tmp_path, every_seconds=0.01)
    first.fill()
    process = run(collect_until_killed, str(tmp_path))
    until(lambda: first.requests() != [])
    first.serve(100, 5)
    until(lambda: len(first.requests()) == 35)
    process.kill()
    process.join(60)
    first.serve(200, 5)
    until(lambda: len(first.requests()) == 40)
    first.log.close()


def test_a_collector_that_ends_writes_what_there_is(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    for _ in range(3):
        process = run(serve_and_end, str(tmp_path))
        process.join(60)
        assert process.exitcode == 0
    assert node.requests() == 3 * [*range(30)]


def test_a_forked_child_writes_to_a_ring_of_its_own(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    node.serve(0, 5)
    child = os.fork()
    if not child:
        node.serve(5, 5)
        os._exit(0)
    node.serve(10, 5)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(ring_file(node.log.path).rings())) == 2
    node.log.collect()
    assert sorted(node.requests()) == list(range(15))
