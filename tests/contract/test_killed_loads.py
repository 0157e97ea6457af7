"""A view is replaced or rolled back whole or not at all, at whichever of its steps a process dies, on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
)
from tests.support.machines import Machine
from tests.support.redis_server import REDIS_EXECUTABLES

SERVERS = ["embedded", *REDIS_EXECUTABLES, "cluster", "sentinel"]
SAMPLE = 2
"""The servers on which some steps are tried by default; each step on all of them is a long mode."""


def on_servers(stride: int) -> Callable[[Any], Any]:
    """Each step on every server in the long mode, else every ``stride``-th on some of them."""
    cases = [pytest.param(server, stride) for server in SERVERS[:SAMPLE]]
    cases += [pytest.param(server, 1, marks=pytest.mark.torture) for server in SERVERS]
    return pytest.mark.parametrize(("connection", "stride"), cases, indirect=["connection"])


@pytest.fixture
def on(connection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(coordinator, "SILENT_SECONDS", 0.0)
    machine = Machine(tmp_path, connection)
    serve_old_rows(machine)
    yield machine
    machine.reboot()
    machine.close()


@on_servers(5)
def test_a_coordinator_that_dies_leaves_the_old_rows_or_the_new(on: Machine, stride: int) -> None:
    def coordinate() -> None:
        rows = table(NEW)
        halves = [{name: column[part] for name, column in rows.items()} for part in (slice(0, 10), slice(10, None))]
        # Without a segment on its node the coordinator only writes to the log.
        replace(ROW, iter(halves), on.registry, checks=[RowCount(at_least=1)], wait_for="log")

    at, killed_now, outcomes = 1, True, []
    while killed_now:
        killed_now = killed(on, coordinate, at)
        on.drain(ROW)
        outcomes.append(served(on.registry))
        assert outcomes[-1] in (OLD, NEW)
        replace(ROW, table(OLD), on.registry)
        assert served(on.registry) == OLD
        at += stride
    on.producer.write_many(ROW, table(PUSHED))
    everything_is(on, OLD | PUSHED)
    assert at > 15
    assert outcomes[0] == OLD
    assert outcomes[-1] == NEW


@on_servers(7)
def test_a_consumer_that_dies_is_followed_by_one_that_completes_it(on: Machine, stride: int) -> None:
    at, killed_now, expected = 1, True, OLD
    while killed_now:
        new = {f"{name}.{at}": number for name, number in NEW.items()}
        result = replace(ROW, table(new), on.registry, wait_for="log")
        assert result.row_count == len(new)
        on.producer.write_many(ROW, table(PUSHED))
        killed_now = killed(on, lambda: on.drain(ROW), at)
        assert served(on.registry) in (expected, new, new | PUSHED)
        expected = new | PUSHED
        on.drain(ROW)
        assert served(on.registry) == expected
        at += stride
    everything_is(on, expected)
    assert at > 20


@on_servers(11)
def test_a_rollback_that_dies_leaves_the_new_rows_or_the_old(on: Machine, stride: int) -> None:
    """The past is read from the history, as the log has been trimmed; the process that goes back also applies it."""
    before = on.log().bounds().last

    def go_back() -> None:
        rollback(ROW, on.registry, to_position=before, history=on.store(), wait_for="node")

    replace(ROW, table(NEW), on.registry)
    at, killed_now, outcomes = 1, True, []
    while killed_now:
        killed_now = killed(on, go_back, at)
        assert served(on.registry) in (OLD, NEW)
        on.drain(ROW)
        outcomes.append(served(on.registry))
        assert outcomes[-1] in (OLD, NEW)
        replace(ROW, table(NEW), on.registry)
        on.drain(ROW)
        assert served(on.registry) == NEW
        at += stride
    on.producer.write_many(ROW, table(PUSHED))
    everything_is(on, NEW | PUSHED)
    assert at > 25
    assert outcomes[0] == NEW
    assert outcomes[-1] == OLD
