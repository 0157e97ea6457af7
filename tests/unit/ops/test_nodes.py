"""Nodes from the reports of processes: grouped by node, the furthest position of each schema, and the lag."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorin.engine.ops import presence
from quorin.engine.ops.gauges import SegmentCollector
from quorin.engine.ops.health import check_deployment
from quorin.engine.ops.nodes import nodes_of, observed_nodes
from quorin.engine.ops.observe import Observer
from quorin.engine.ops.presence import Process, Report
from quorin.engine.ops.readiness import readiness
from quorin.errors import NotYetAppliedError
from quorin.wal_consumer import WALConsumer
from tests.support.redis_server import REDIS_EXECUTABLES, RedisServer
from tests.support.world import TRIP, World, row, until, world  # noqa: F401 - world is a fixture


def report(node: str, pid: int, age: float = 0.0, **positions: int) -> Report:
    schemas = {
        name: {"segment": "s", "version": 1, "position": at, "lag_seconds": 0.5} for name, at in positions.items()
    }
    return Report(Process(f"host-{node}", pid, 1), "consumer", node, age, schemas)


def test_reports_are_grouped_by_node_and_the_furthest_position_counts() -> None:
    first, second = nodes_of([report("a", 1, 2, X=5, Y=9), report("b", 2, 1, X=7), report("a", 3, 700, X=8)])
    assert (first.node, second.node) == ("b", "a")
    assert second.hosts == ("host-a",)
    assert [(replica.schema_name, replica.position) for replica in second.replicas] == [("X", 8), ("Y", 9)]
    assert second.silent_seconds == 2
    assert second.is_alive
    assert second.lag_seconds == 700.5, "the lag has grown since the report"
    assert first.position_of("Y") == 0


def test_a_node_is_silent_after_the_timeout() -> None:
    (node,) = nodes_of([report("a", 1, 5, X=1)], node_timeout_seconds=4)
    assert not node.is_alive
    (node,) = nodes_of([report("a", 1, 5, X=1)], node_timeout_seconds=5)
    assert node.is_alive


def test_an_unknown_lag_stays_unknown() -> None:
    schemas = {"X": {"segment": "s", "position": 3, "lag_seconds": None}, "Y": {"segment": "s", "position": 3}}
    (node,) = nodes_of([Report(Process("h", 1, 1), "consumer", "a", 0, schemas)])
    assert node.lag_seconds is None
    assert [replica.version for replica in node.replicas] == [0, 0]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.floats(0, 1e4), st.integers(0, 99)), max_size=9))
def test_no_position_and_no_node_is_lost(entries: list[tuple[str, int, float, int]]) -> None:
    nodes = nodes_of([report(node, pid, age, X=at) for node, pid, age, at in entries])
    assert {node.node for node in nodes} == {node for node, *_ in entries}
    for node in nodes:
        assert node.position_of("X") == max(at for name, _, _, at in entries if name == node.node)
        assert node.silent_seconds == min(age for name, _, age, _ in entries if name == node.node)


def test_what_a_node_is_behind_by_is_counted_in_the_log(world: World) -> None:  # noqa: F811
    positions = [world.producer.write(TRIP, f"e{number}", row(number)) for number in range(3)]
    entry = {"Trip": {"segment": "s", "version": 1, "position": positions[0], "lag_seconds": 3.0}}
    presence.announce(world.backend.control, "consumer", "node-1", entry)
    (node,) = observed_nodes(world.backend, [world.log])
    assert (node.node, node.roles, node.is_alive) == ("node-1", ("consumer",), True)
    assert (node.behind.entries, node.behind.rows, node.behind.is_exact) == (2, 2, True)
    assert node.behind.bytes > 100
    assert node.as_dict()["behind"]["rows"] == 2
    with pytest.raises(NotYetAppliedError, match="not applied within 30 ms by the nodes node-1") as caught:
        world.producer.wait_for_nodes(TRIP, positions[2], timeout_ms=30)
    assert (caught.value.position, caught.value.nodes) == (positions[2], ["node-1"])
    world.producer.wait_for_nodes(TRIP, positions[0], timeout_ms=30)
    presence.withdraw(world.backend.control)
    assert observed_nodes(world.backend, [world.log]) == []
    world.producer.wait_for_nodes(TRIP, positions[2], timeout_ms=30)


def test_silence_is_measured_by_the_stores_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A machine whose clock is off by an hour reports like any other."""
    real = presence.time.time_ns
    monkeypatch.setattr(presence.time, "time_ns", lambda: real() - 3600 * 10**9)
    presence.announce(world.backend.control, "consumer", "node-1", {})
    (report,) = presence.reports(world.backend.control)
    assert 0 <= report.age_seconds < 600


def test_a_running_consumer_reports_its_node_is_ready_and_shows_in_metrics(world: World) -> None:  # noqa: F811
    position = world.producer.write(TRIP, "a", row(1))
    assert [one.problem for one in readiness(world.registry, max_lag_seconds=1)] == []
    consumer = world.consumer(TRIP)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        until(lambda: any(node.position_of("Trip") >= position for node in observed_nodes(world.backend, [world.log])))
        (node,) = observed_nodes(world.backend, [world.log])
        assert node.node == world.registry.node.id
        world.producer.wait_for_nodes(TRIP, position)
        until(lambda: not readiness(world.registry, max_lag_seconds=60)[0].problem)
        with Observer(world.backend, shm_dir=world.shm_dir) as observer:
            collector = SegmentCollector(observer)
            samples = {sample.name: sample for family in collector.collect() for sample in family.samples}
            collector.close()
        assert samples["quorin_node_up"].labels == {"node": node.node}
        assert samples["quorin_node_lag_seconds"].value < 600
        assert samples["quorin_node_info"].labels == {"node": node.node}
        checks = check_deployment(world.connection, shm_dir=world.shm_dir)
        (own,) = [check for check in checks if check.name.startswith(f"node {node.node}")]
        assert own.status in ("ok", "warning")
    finally:
        consumer.stop()
        thread.join(60)
    (late,) = readiness(world.registry, max_lag_seconds=0)
    assert "last known to be up to date" in late.problem
    unapplied = ["no process applies the log here"]
    assert warnings_of_this_node(world) == (unapplied if world.backend.is_remote else [])
    world.producer.write(TRIP, "b", row(2))
    assert warnings_of_this_node(world) == unapplied


def test_a_node_without_the_control_plane_says_what_it_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = RedisServer(version=next(iter(REDIS_EXECUTABLES)))
    try:
        away = World(server.url, tmp_path)
        away.producer.write(TRIP, "a", row(1))
        away.drain()
        with Observer(away.backend, shm_dir=tmp_path) as observer:
            collector = SegmentCollector(observer)

            def gauges() -> dict[str, float]:
                return {sample.name: sample.value for family in collector.collect() for sample in family.samples}

            assert gauges()["quorin_control_plane_up"] == 1
            server.kill()
            without = [gauges() for _ in range(3)][-1]
            checks = {check.name: check for check in check_deployment(server.url, shm_dir=tmp_path)}
            server.start()
            until(lambda: gauges()["quorin_control_plane_up"] == 1)
            collector.close()
        away.backend.close()
    finally:
        server.stop()
    assert [without[f"quorin_{name}"] for name in ("control_plane_up", "segment_up", "segment_rows")] == [0, 1, 1]
    assert without["quorin_node_lag_seconds"] > 0
    assert without["quorin_shm_free_bytes"] > 0
    assert "quorin_lag_seconds" not in without, "what the log has is unknown"
    assert checks["control plane"].status == "problem"
    assert checks["segment of Trip"].found.startswith("1 row, last up to date")
    said = capsys.readouterr().err
    assert [said.count(event) for event in ("control_plane_unreachable", "control_plane_reachable")] == [1, 1]


def warnings_of_this_node(world: World) -> list[str]:  # noqa: F811
    checks = check_deployment(world.connection, shm_dir=world.shm_dir)
    return [check.found for check in checks if check.name == "this node"]


def test_a_missing_segment_keeps_a_node_from_being_ready(world: World) -> None:  # noqa: F811
    with WALConsumer(world.backend, [TRIP], registry=world.registry) as consumer:
        consumer.drain()
    assert not readiness(world.registry, max_lag_seconds=None)[0].problem
    for path in world.shm_dir.glob("quorin_Trip*"):
        path.unlink()
    (missing,) = readiness(world.registry, max_lag_seconds=None)
    assert "no such file" in missing.problem
    assert missing.as_dict() == {"schema": "Trip", "lag_seconds": None, "ready": False, "problem": missing.problem}
