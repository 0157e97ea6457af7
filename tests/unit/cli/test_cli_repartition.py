"""``quorin repartition``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from quorin.engine.repartition import run
from tests.support.commands import run_quorin
from tests.support.world import TRIP, World, row, world  # noqa: F401 - a fixture


def quorin(world: World, *words: str) -> CompletedProcess[str]:  # noqa: F811 - the fixture's value
    return run_quorin(["repartition", *words, "--connection", world.connection], dict(os.environ))


@pytest.mark.parametrize("world", ["embedded"], indirect=True)
def test_a_deployment_is_grown_and_a_growth_undone(world: World, tmp_path: Path) -> None:  # noqa: F811
    world.producer.write(TRIP, "a", row(1))
    refused = quorin(world, "3")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the deployment has 1 partition," in refused.stderr
    assert "expected 2, got 3" in refused.stderr
    for wrong in ((), ("2", "--abort")):
        assert quorin(world, *wrong).returncode == 2
    nothing = quorin(world, "--abort")
    assert (nothing.returncode, nothing.stdout) == (0, "no growth is under way; the deployment has 1 partition\n")
    run.begin(world.backend, 2, ["quorin:wal"])
    undone = quorin(world, "--abort", "--json")
    assert json.loads(undone.stdout) == {"aborted": True, "partitions": 1}
    grown = quorin(world, "2")
    assert grown.returncode == 0
    assert "2, before 1" in grown.stdout
    assert "1 entries up to position" in grown.stdout
    again = json.loads(quorin(world, "2", "--json").stdout)
    assert (again["former_partitions"], again["partitions"], again["closed_entries"]) == (1, 2, 1)
