"""A deployment grows while it is written and read; whatever is killed, nothing acknowledged is lost and reads go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.backend import connect
from quorin.engine.format.growth import Growth, State
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.forking import context, preload
from tests.support.growing import (
    NUMBERS,
    Reader,
    consume,
    grow_or_die,
    noted,
    row,
    rows_of,
    until,
    write,
)

preload(__name__)

WRITERS = 2


class Deployment:
    """A node with a consumer, two writers and a reader, all going on."""

    def __init__(self, connection: str, directory: Path, *, keeps_history: bool) -> None:
        self.connection = connection
        self.directory = directory
        self.stop = directory / "stop"
        self.notes = [directory / f"acknowledged {number}" for number in range(WRITERS)]
        self.backend = connect(connection)
        self.offline = str(directory / "history") if keeps_history else ""
        self.node = self.new_registry("node")
        self._processes: list[Any] = []

    def new_registry(self, name: str) -> SegmentRegistry:
        (self.directory / name).mkdir()
        return SegmentRegistry(self.backend, shm_dir=self.directory / name)

    @contextmanager
    def running(self) -> Iterator[Reader]:
        """Processes that write and apply, and a reader; after the block the node has all rows."""
        with WALProducer(self.backend) as producer:
            for number in range(20):
                producer.write(NUMBERS, f"still {number}", row(number))
        consumer = WALConsumer(self.backend, [NUMBERS], registry=self.node)
        consumer.drain()
        consumer.close()
        self.start(consume, self.connection, str(self.node.shm_dir), self.offline)
        for number, notes in enumerate(self.notes):
            self.start(write, self.connection, number, str(notes), str(self.stop))
        until(lambda: all(notes.exists() for notes in self.notes) and len(noted(*self.notes)) == 50 * WRITERS)
        with Reader(self.node, [f"still {number}" for number in range(20)]) as reader:
            try:
                yield reader
                until(lambda: reader.reads > 3 or reader.failures)
            finally:
                self.stop.touch()
                for process in self._processes[1:]:
                    process.join(60)
        assert reader.failures == []
        assert [process.exitcode for process in self._processes[1:]] == [0] * WRITERS

    def start(self, target: Any, *arguments: Any) -> Any:
        process = context.Process(target=target, args=arguments)
        process.start()
        self._processes.append(process)
        return process

    def die_at(self, partitions: int, step: int, *, aborts: bool = False) -> bool:
        """Run the command until it dies at a step; False if it has fewer steps."""
        process = context.Process(
            target=grow_or_die, args=(self.connection, partitions, step), kwargs={"aborts": aborts}
        )
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0

    def state(self) -> Growth:
        return Growth.parse(self.backend.control.growth())

    def partitions(self) -> int:
        self.backend.forget_partitions()
        return self.backend.partitions()

    def check(self) -> None:
        """Each node serves what was acknowledged, or a newer row, and all the same: one that was there, one that is
        new, and those of halves.
        """
        acknowledged = noted(*self.notes)
        ids = [*acknowledged, *(f"still {number}" for number in range(20))]
        assert len(acknowledged) == 50 * WRITERS

        def is_there() -> bool:
            served = rows_of(self.node, ids)
            return all((served[entity] or 0) >= number for entity, number in acknowledged.items())

        until(is_there)
        with self.node.open_current(NUMBERS) as segment:
            until(lambda: segment.partitioning.count == self.partitions())
        served = rows_of(self.node, ids)
        new = self.new_registry("new")
        other = WALConsumer(self.backend, [NUMBERS], registry=new, offline=None)
        other.drain()
        other.close()
        with new.open_current(NUMBERS) as segment:
            assert segment.partitioning.count == self.partitions()
        if not self.offline:  # Without the history a new node has what was not trimmed.
            assert rows_of(new, ids) == served

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join(60)
        self.backend.close()


@pytest.fixture
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    url = str(tmp_path / "store") if request.param == "embedded" else str(request.getfixturevalue("redis_url"))
    opened = Deployment(url, tmp_path, keeps_history=False)
    yield opened
    opened.close()


@pytest.mark.parametrize("deployment", ["redis"], indirect=True)
def test_a_command_that_dies_behind_every_step_goes_on(deployment: Deployment) -> None:
    with deployment.running():
        deaths = 0
        while deployment.die_at(2, 2):  # Behind the first of the steps that are left.
            deaths += 1
            assert deaths < 10
        assert deployment.partitions() == 2
        assert deaths >= 1, "producers may have taken some of the steps"
    deployment.check()


@pytest.mark.parametrize("deployment", ["embedded"], indirect=True)
def test_an_abort_that_dies_reopens_the_logs_when_it_is_run_again(deployment: Deployment) -> None:
    with deployment.running():
        assert deployment.die_at(2, 2)
        assert deployment.die_at(2, 1, aborts=True) or deployment.partitions() == 2, "unless a producer was quicker"
        while deployment.die_at(2, 3, aborts=True):
            pass
        assert deployment.state().state is State.settled
        assert deployment.partitions() in (1, 2)
        before = noted(*deployment.notes)
        until(lambda: sum(noted(*deployment.notes).values()) > sum(before.values()))
    deployment.check()


@pytest.mark.parametrize("deployment", ["redis"], indirect=True)
def test_producers_finish_a_growth_whose_command_died(deployment: Deployment) -> None:
    with deployment.running():
        assert deployment.die_at(2, 2), "when the log is closed, and there is no other yet"
        until(lambda: deployment.partitions() == 2)
        before = noted(*deployment.notes)
        until(lambda: sum(noted(*deployment.notes).values()) > sum(before.values()))
    deployment.check()


@pytest.mark.torture
@pytest.mark.parametrize("deployment", ["redis", "embedded"], indirect=True)
def test_a_command_that_dies_at_any_of_its_steps(deployment: Deployment) -> None:
    with deployment.running():
        for partitions in (2, 4, 8, 16):
            step = 0
            while deployment.die_at(partitions, step):
                step += 1
                if step % 3 == 0 and deployment.partitions() < partitions:
                    at = 0
                    while deployment.die_at(partitions, at, aborts=True):  # Until one of them gets to the end.
                        at += 1
            assert deployment.partitions() == partitions
    deployment.check()
