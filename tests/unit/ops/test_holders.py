"""Who holds which partitions: from the reports of all nodes to the file of one, and back."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quorin.engine.backend import Backend, connect
from quorin.engine.memory.addresses import register_address
from quorin.engine.memory.node import Node
from quorin.engine.ops.holders import FRESH_SECONDS, Holder, holders, known_holders, publish_holders, report_of

Report = Callable[..., None]


@pytest.fixture(params=["embedded", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    embedded = request.param == "embedded"
    opened = connect(str(tmp_path / "store") if embedded else str(request.getfixturevalue("redis_url")))
    yield opened
    opened.close()


@pytest.fixture
def node(backend: Backend, tmp_path: Path) -> Node:
    (tmp_path / "shm").mkdir()
    return Node(tmp_path / "shm", backend)


@pytest.fixture
def report(backend: Backend) -> Report:
    """Announces a node as its applier does, from a process of another machine."""

    def announce(node: str, held: list[int], *urls: str, lag: float | None = 0.1, count: int = 4, pid: int = 1) -> None:
        own = {"partitions": {"count": count, "held": held}, "urls": list(urls)}
        entry = {"role": "consumer", "node": node, "heartbeat_ns": 0, "schemas": {"S": {"position": 1}}, **own}
        entry["schemas"]["S"]["lag_seconds"] = lag
        backend.control.announce(f"{node}:{pid}:1", json.dumps(entry), node=node, positions={"S": 1})

    return announce


def test_what_nodes_report_is_read_without_the_control_plane(backend: Backend, node: Node, report: Report) -> None:
    report("a", [0, 1], "http://a:1", "http://a:2")
    report("b", [1, 2, 3])
    assert holders(node) == {}
    publish_holders(backend.control, node)
    a, b = Holder("a", ("http://a:1", "http://a:2"), True), Holder("b", (), True)
    assert holders(node) == {0: (a,), 1: (a, b), 2: (b,), 3: (b,)}
    assert known_holders(node).count == 4
    if backend.is_remote:
        backend.close()
    assert list(holders(node)) == [0, 1, 2, 3]


def test_a_node_reports_what_it_holds_and_where_it_serves(backend: Backend, node: Node) -> None:
    held = register_address(node, "http://here:1")
    entry = {"role": "consumer", "node": node.id, "schemas": {"S": {"lag_seconds": 0.0}}}
    text = json.dumps(entry | report_of(node, 2, {1}))
    backend.control.announce("h:1:1", text, node=node.id, positions={"S": 1})
    publish_holders(backend.control, node)
    assert holders(node) == {1: (Holder(node.id, ("http://here:1",), True),)}
    held.release()


def test_one_partition_leaves_no_file(backend: Backend, node: Node, report: Report) -> None:
    names = {path.name for path in node.beside("").parent.iterdir()}
    report("a", [0], "http://a:1", count=1)
    backend.control.announce("old:1:1", json.dumps({"role": "consumer", "schemas": {}}), node="", positions={})
    publish_holders(backend.control, node)
    assert holders(node) == {}
    assert {path.name for path in node.beside("").parent.iterdir()} == names


def test_nodes_that_speak_of_different_numbers_are_compared(backend: Backend, node: Node, report: Report) -> None:
    """As while a deployment grows: a node has what its report says, of the number that the report speaks of."""
    report("a", [0, 1], "http://a:1")
    report("b", [4, 5, 6], "http://b:1", count=8)
    report("c", [0], "http://c:1", count=1)
    publish_holders(backend.control, node)
    a, b, c = (Holder(name, (f"http://{name}:1",), True) for name in "abc")
    assert holders(node, 4) == {0: (a, c), 1: (a, c), 2: (b, c), 3: (c,)}
    assert holders(node, 8) == {
        0: (a, c), 1: (a, c), 2: (a, c), 3: (a, c), 4: (b, c), 5: (b, c), 6: (b, c), 7: (c,),
    }  # fmt: skip
    assert holders(node, 1) == {0: (c,)}


@pytest.mark.parametrize("lag", [None, FRESH_SECONDS + 1])
def test_a_node_that_may_lack_rows_is_not_ready(
    backend: Backend, node: Node, report: Report, lag: float | None
) -> None:
    report("a", [0], "http://a:1", lag=lag)
    publish_holders(backend.control, node)
    assert holders(node) == {0: (Holder("a", ("http://a:1",), False),)}


def test_a_node_has_what_its_last_report_says(backend: Backend, node: Node, report: Report) -> None:
    """As one whose consumer was restarted with other partitions."""
    report("a", [0, 1], "http://a:1", pid=1)
    publish_holders(backend.control, node)
    report("a", [2], "http://a:2", pid=2)
    publish_holders(backend.control, node)
    assert holders(node) == {2: (Holder("a", ("http://a:2",), True),)}


def test_a_file_is_only_written_when_it_changes(backend: Backend, node: Node, report: Report) -> None:
    report("a", [0], "http://a:1")
    publish_holders(backend.control, node)
    path = node.beside("holders")
    before = path.stat().st_ino, path.stat().st_mtime_ns
    publish_holders(backend.control, node)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    report("a", [0], "http://a:9")
    publish_holders(backend.control, node)
    assert holders(node)[0][0].urls == ("http://a:9",)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [one for one in path.parent.iterdir() if one.suffix == ".pending"]


DAMAGED = [b"", b"{", b"\xff" * 9, b"[]", b"7", b'{"format": 2}', b'{"format": 1, "count": 4, "nodes": [{}]}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_names_no_holders(node: Node, text: bytes) -> None:
    node.beside("holders").write_bytes(text)
    assert holders(node) == {}
