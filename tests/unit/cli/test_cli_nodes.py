"""``quorin nodes`` and ``quorin ready``: what a consumer that runs, and one that does not, make them say."""

# ruff: noqa: F811 - fixtures are arguments of the name that they are imported by

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from tests.support.commands import run_quorin
from tests.support.redis_server import RedisServer
from tests.support.world import TRIP, World, row, running, until, world  # noqa: F401 - world is a fixture


def run(world: World, *words: str) -> Any:
    place = ["--connection", world.connection]
    if words[0] == "ready":
        place += ["--shm-dir", str(world.shm_dir)]
    return run_quorin([*words, *place], {**os.environ, "COLUMNS": "200"})


def test_a_node_is_ready_while_a_consumer_confirms_and_not_after(world: World) -> None:
    nothing = run(world, "ready")
    assert (nothing.returncode, nothing.stdout) == (1, "not ready\n")
    assert "no schemas yet" in nothing.stderr
    world.producer.write(TRIP, "a", row(1))
    with running(world.consumer(TRIP)):
        until(lambda: run(world, "ready", "--max-lag", "1m").returncode == 0)
        assert run(world, "ready", "--max-lag", "1m").stdout == "ready\n"
        ready = json.loads(run(world, "ready", "--json", "--max-lag", "1m").stdout)
        assert (ready["ready"], ready["schemas"][0]["schema"]) == (True, "Trip")
    until(lambda: run(world, "ready", "--max-lag", "10ms").returncode == 1)
    late = run(world, "ready", "--max-lag", "10ms")
    assert "Trip: last known to be up to date" in late.stderr
    assert "expected at most 0.01 s" in late.stderr
    assert run(world, "ready").returncode == 0, "without --max-lag every schema needs a segment, however old"


@pytest.mark.parametrize("duration", ["5", "-1s", "soon"])
def test_a_wrong_duration_is_refused(world: World, duration: str) -> None:
    for words in (("ready", f"--max-lag={duration}"), ("nodes", f"--node-timeout={duration}")):
        refused = run(world, *words)
        assert refused.returncode == 2
        assert "expected a duration such as" in refused.stderr


def test_nodes_are_listed_with_what_they_lack(world: World) -> None:
    assert "no node has reported" in run(world, "nodes").stdout
    position = world.producer.write(TRIP, "a", row(1))
    with running(world.consumer(TRIP)):
        until(lambda: bool(json.loads(run(world, "nodes", "--json").stdout)["nodes"]))
        world.producer.wait_for_nodes(TRIP, position, timeout_ms=60_000)
        found = json.loads(run(world, "nodes", "--json").stdout)
        (node,) = found["nodes"]
        assert (node["node"], node["is_alive"], node["roles"]) == (world.registry.node.id, True, ["consumer"])
        assert node["behind"] == {"entries": 0, "rows": 0, "bytes": 0, "is_exact": True}
        assert node["replicas"][0]["position"] >= position
        table = run(world, "nodes").stdout
        assert world.registry.node.id in table
        assert "alive" in table
        assert re.search(r"up to date\b.*\n.* (ns|µs|ms|s) ago", table)
        for shown in (table, run(world, "nodes", "--schemas").stdout, run(world, "nodes", "--partitions").stdout):
            assert "lag" not in shown, "a word for rows that wait in the log"
        by_schema = run(world, "nodes", "--schemas").stdout
        assert "Trip" in by_schema
        assert str(node["replicas"][0]["position"]) in by_schema


def test_ready_needs_no_redis_once_the_node_has_met_the_deployment(tmp_path: Any) -> None:
    server = RedisServer()
    try:
        (tmp_path / "shm").mkdir()
        world = World(server.url, tmp_path / "shm")
        world.producer.write(TRIP, "a", row(1))
        world.drain()
        server.kill()
        assert run(world, "ready").returncode == 0
        until(lambda: run(world, "ready", "--max-lag", "100ms").returncode == 1)
        server.start()
        with running(world.consumer(TRIP)):
            until(lambda: run(world, "ready", "--max-lag", "1m").returncode == 0)
        world.producer.close()
        world.backend.close()
    finally:
        server.stop()
