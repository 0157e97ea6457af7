"""A view is replaced or rolled back whole or not at all, at whichever of its steps a process dies, on every backend.

With several partitions a second node holds some of them: it has the same load in force as the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.backend import logs
from quorin.engine.consumer import held
from quorin.engine.format.partition import partition_of
from quorin.engine.loads import coordinator
from quorin.evolution import replace, rollback
from quorin.schema import RowCount
from tests.support.killed_loads import (
    NEW,
    OLD,
    PUSHED,
    ROW,
    everything_is,
    killed,
    serve_old_rows,
    served,
    table,
    without_pushed,
)
from tests.support.machines import Machine
from tests.support.redis_server import REDIS_EXECUTABLES

SERVERS = ["embedded", *REDIS_EXECUTABLES, "cluster", "sentinel"]
SAMPLE = 2
"""The servers on which some steps are tried by default; each step on all of them is a long mode."""
COUNT = 4
SEVERAL = 60
"""By default a process with several partitions dies at each of so many steps: at one or two."""


def on_servers(stride: int) -> Callable[[Any], Any]:
    """Each step on every server in the long mode, else every ``stride``-th on some of them."""
    cases = [pytest.param(server, 1, stride) for server in SERVERS[:SAMPLE]]
    cases += [pytest.param(server, COUNT, SEVERAL) for server in SERVERS[:SAMPLE]]
    long = [(server, count) for count in (1, COUNT) for server in SERVERS]
    cases += [pytest.param(server, count, 1, marks=pytest.mark.torture) for server, count in long]
    return pytest.mark.parametrize(("connection", "count", "stride"), cases, indirect=["connection", "count"])


class Nodes(Machine):
    """A node that holds all partitions; with several also one that holds two of them."""

    def __init__(self, directory: Path, connection: str, count: int) -> None:
        super().__init__(directory, connection, partitions=count)
        self.other = Machine(directory, connection, held="1-2", shm="other") if count > 1 else None

    def settle(self) -> None:
        """Apply all that there is. The first drain may finish a load, for the second one."""
        nodes: list[Machine] = [self] if self.other is None else [self, self.other]
        for node in 2 * nodes:
            node.drain(ROW)
        if self.other is not None:
            rows = served(self.registry).items()
            theirs = {name: number for name, number in rows if partition_of(name, COUNT) in (1, 2)}
            assert served(self.other.registry) == theirs

    def close(self) -> None:
        if self.other is not None:
            self.other.reboot()
            self.other.close()
        self.reboot()
        super().close()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def on(connection: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for module in (coordinator, held):
        monkeypatch.setattr(module, "SILENT_SECONDS", 0.0)
    machine = Nodes(tmp_path, connection, count)
    serve_old_rows(machine)
    machine.settle()
    yield machine
    machine.close()


@on_servers(5)
def test_a_coordinator_that_dies_leaves_the_old_rows_or_the_new(on: Nodes, stride: int) -> None:
    def coordinate() -> None:
        rows = table(NEW)
        halves = [{name: column[part] for name, column in rows.items()} for part in (slice(0, 10), slice(10, None))]
        # Without a segment on its node the coordinator only writes to the log.
        replace(ROW, iter(halves), on.registry, checks=[RowCount(at_least=1)], wait_for="log")

    at, killed_now, outcomes = 1, True, []
    while killed_now:
        killed_now = killed(on, coordinate, at)
        on.settle()
        outcomes.append(served(on.registry))
        assert outcomes[-1] in (OLD, NEW)
        replace(ROW, table(OLD), on.registry)
        on.settle()
        assert served(on.registry) == OLD
        at += stride
    on.producer.write_many(ROW, table(PUSHED))
    everything_is(on, OLD | PUSHED)
    assert at > 15
    assert outcomes[0] == OLD
    assert outcomes[-1] == NEW


@on_servers(7)
def test_a_consumer_that_dies_is_followed_by_one_that_completes_it(on: Nodes, stride: int) -> None:
    at, killed_now, expected = 1, True, OLD
    while killed_now:
        new = {f"{name}.{at}": number for name, number in NEW.items()}
        result = replace(ROW, table(new), on.registry, wait_for="log")
        assert result.row_count == len(new)
        on.producer.write_many(ROW, table(PUSHED))
        killed_now = killed(on, lambda: on.drain(ROW), at)
        # Of several logs one may be read on before the load is in all of them.
        assert without_pushed(served(on.registry)) in (without_pushed(expected), new)
        expected = new | PUSHED
        on.settle()
        assert served(on.registry) == expected
        at += stride
    everything_is(on, expected)
    assert at > 20


@on_servers(11)
def test_a_rollback_that_dies_leaves_the_new_rows_or_the_old(on: Nodes, stride: int) -> None:
    """The past is read from the history, as the log has been trimmed; the process that goes back also applies it."""
    before = max(log.bounds().last for log in logs(on.registry.backend))

    def go_back() -> None:
        rollback(ROW, on.registry, to_position=before, history=on.store(), wait_for="node")

    replace(ROW, table(NEW), on.registry)
    on.settle()
    at, killed_now, outcomes = 1, True, []
    while killed_now:
        killed_now = killed(on, go_back, at)
        assert served(on.registry) in (OLD, NEW)
        on.settle()
        outcomes.append(served(on.registry))
        assert outcomes[-1] in (OLD, NEW)
        replace(ROW, table(NEW), on.registry)
        on.settle()
        assert served(on.registry) == NEW
        at += stride
    on.producer.write_many(ROW, table(PUSHED))
    everything_is(on, NEW | PUSHED)
    assert at > 25
    assert outcomes[0] == NEW
    assert outcomes[-1] == OLD
