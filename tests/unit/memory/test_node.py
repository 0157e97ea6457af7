"""The node's file: what is current on a node, found without the server, taken over, and changed in one step."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from quorin.engine.backend import Backend, Beginning, connect
from quorin.engine.memory import turns
from quorin.engine.memory.node import FORMAT, Node, NodeState
from quorin.errors import ConnectionFailedError, CorruptSegmentError, SharedMemoryError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.support.forking import context, preload
from tests.support.redis_server import RedisServer, emptied

STOP = make_schema("Stop", [FeatureField("count", dtype.int64)])
FIRST, SECOND, THIRD = (f"quorin_Stop_0123456789ab0000000{number}" for number in (1, 2, 3))

preload(__name__)


def publish(node: Node, name: str, *, expected: str | None = None, beginning: Beginning | None = None) -> bool:
    return node.publish("Stop", name, expected=expected, beginning=beginning, before=lambda: None)


@pytest.fixture(params=["embedded", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    embedded = request.param == "embedded"
    opened = connect(str(tmp_path / "store") if embedded else str(request.getfixturevalue("redis_url")))
    yield opened
    opened.close()


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


def test_a_state_is_what_its_text_says() -> None:
    state = NodeState(2**62, "ab" * 8, "quorin", ("redis://é:1/0",), (5,), {"Stop": FIRST}, {"Stop": (7, 8)})
    assert NodeState.from_json(Path("x"), state.to_json()) == state


@pytest.mark.parametrize(
    "text", ["", "\udcff", "{", "[]", "7", "{}", '{"format": 1}', '{"format": 1, "identity": 5, "more": 1}']
)
def test_a_damaged_file_is_refused_by_name(shm: Path, backend: Backend, text: str) -> None:
    (shm / f"quorin-node-{backend.control.identity():016x}").write_text(text, errors="surrogateescape")
    with pytest.raises(CorruptSegmentError, match=r"quorin-node-.* is damaged .*: remove it"):
        Node(shm, backend).state()


def test_a_file_that_is_not_text_is_refused_by_name(shm: Path, backend: Backend) -> None:
    """A ``shm_dir`` on a disk may have lost a block."""
    (shm / f"quorin-node-{backend.control.identity():016x}").write_bytes(b"\xff" * 64)
    with pytest.raises(CorruptSegmentError, match=r"quorin-node-.* is damaged .*: remove it"):
        Node(shm, backend).state()


def test_files_of_others_that_cannot_be_read_hide_no_node(shm: Path, redis_url: str) -> None:
    """They are damaged, or of another user, who may share the directory."""
    (shm / "quorin-node-0000000000000001").write_text("{")
    (shm / "quorin-node-0000000000000002").mkdir()
    backend = connect(redis_url)
    assert publish(Node(shm, backend), FIRST)
    assert Node(shm, backend).current("Stop") == FIRST
    backend.close()


def test_a_file_of_a_newer_release_is_refused_by_name(shm: Path, backend: Backend) -> None:
    text = json.dumps({"format": FORMAT + 1, "anything": True})
    (shm / f"quorin-node-{backend.control.identity():016x}").write_text(text)
    with pytest.raises(CorruptSegmentError, match=rf"has format {FORMAT + 1}, this release of Quorin reads {FORMAT}"):
        Node(shm, backend).state()


def test_a_segment_becomes_current_and_stops_to_be_only_as_expected(shm: Path, backend: Backend) -> None:
    node, other = Node(shm, backend), Node(shm, backend)
    assert node.current("Stop") is None
    assert publish(node, FIRST, beginning=Beginning(3, 4))
    assert not publish(other, SECOND)
    assert not other.swap("Stop", SECOND, expected=SECOND)
    assert other.currents() == {"Stop": FIRST}
    assert other.swap("Stop", SECOND, expected=FIRST)
    assert (node.current("Stop"), node.state().beginnings) == (SECOND, {"Stop": (3, 4)})
    assert not node.clear("Stop", expected=FIRST)
    assert node.clear("Stop", expected=SECOND)
    assert (other.currents(), other.state().beginnings) == ({}, {})
    assert node.id == other.id
    assert node.identity == backend.control.identity()


def test_nothing_changes_if_what_comes_before_fails(shm: Path, backend: Backend) -> None:
    node = Node(shm, backend)

    def fail() -> None:
        raise ConnectionFailedError("away")

    with pytest.raises(ConnectionFailedError):
        node.publish("Stop", FIRST, expected=None, beginning=None, before=fail)
    assert node.currents() == {}
    assert publish(node, FIRST), "and the lock is free"


def test_only_its_owner_reads_it(shm: Path, backend: Backend) -> None:
    publish(Node(shm, backend), FIRST)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in shm.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def _race(connection: str, shm_dir: str, name: str, results: Any) -> None:
    backend = connect(connection)
    results.put((name, publish(Node(Path(shm_dir), backend), name)))
    backend.close()


def test_of_several_processes_one_wins(shm: Path, backend: Backend) -> None:
    connection = f"{backend.address}".partition("?")[0]
    results = context.Queue()
    names = [f"quorin_Stop_0123456789ab0000000{number}" for number in range(1, 4)]
    racers = [context.Process(target=_race, args=(connection, str(shm), name, results)) for name in names]
    for racer in racers:
        racer.start()
    outcomes = dict(results.get(timeout=120) for _ in racers)
    for racer in racers:
        racer.join(60)
    assert sorted(outcomes.values()) == [False, False, True]
    assert outcomes[str(Node(shm, backend).current("Stop"))]


def test_of_several_threads_one_wins_each_time(shm: Path, backend: Backend) -> None:
    node, rounds, racers = Node(shm, backend), 10, 3
    publish(node, FIRST)
    together, wins = threading.Barrier(racers), []

    def race(number: int) -> None:
        for turn in range(rounds):
            seen = node.current("Stop")
            together.wait(60)
            if node.swap("Stop", f"quorin_Stop_0123456789ab{number:04x}{turn:04x}", expected=str(seen)):
                wins.append((turn, number))
            together.wait(60)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(1, racers + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(turn for turn, _ in wins) == list(range(rounds))
    turn, number = max(wins)
    assert node.current("Stop") == f"quorin_Stop_0123456789ab{number:04x}{turn:04x}"


def test_a_directory_that_is_gone_is_named(shm: Path, backend: Backend) -> None:
    node = Node(shm, backend)
    publish(node, FIRST)
    for path in shm.iterdir():
        path.unlink()
    shm.rmdir()
    with pytest.raises(SharedMemoryError, match=rf"cannot make {shm}/quorin-node-.*: No such file or directory"):
        publish(node, FIRST)


def test_a_process_that_dies_before_the_rename_changes_nothing(shm: Path, backend: Backend) -> None:
    node = Node(shm, backend)
    assert publish(node, FIRST)
    pid = os.fork()
    if not pid:
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
        node.swap("Stop", SECOND, expected=FIRST)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert Node(shm, backend).current("Stop") == FIRST
    assert node.swap("Stop", SECOND, expected=FIRST), "the lock went with the process"


def test_a_process_frozen_in_a_flip_holds_up_no_other_and_its_flip_fails(
    shm: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its comparison was true before it was frozen; when it wakes another segment is current."""
    monkeypatch.setattr(turns, "FROZEN_AFTER_SECONDS", 0.2)
    node = Node(shm, backend)
    assert publish(node, FIRST)
    pid = os.fork()
    if not pid:
        stops = lambda: os.kill(os.getpid(), signal.SIGSTOP)  # noqa: E731
        os._exit(node.publish("Stop", SECOND, expected=FIRST, beginning=None, before=stops))
    os.waitpid(pid, os.WUNTRACED)
    assert node.swap("Stop", THIRD, expected=FIRST)
    os.kill(pid, signal.SIGCONT)
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 0
    assert Node(shm, backend).currents() == {"Stop": THIRD}


def test_a_state_that_was_carried_over_is_changed_no_more(shm: Path, redis_server: RedisServer) -> None:
    """A process dies between leaving the old identity's file and removing it; another had read the old state."""
    backend = connect(emptied(redis_server))
    node, second = Node(shm, backend), Node(shm, backend)
    assert publish(node, FIRST)
    old = second.state()
    emptied(redis_server)
    new = backend.control.identity()
    pid = os.fork()
    if not pid:
        Path.unlink = _dies_of_the_state_file(Path.unlink)  # type: ignore[method-assign]
        node.confirm()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert (shm / f"quorin-node-{old.identity:016x}").exists()
    assert second.swap("Stop", SECOND, expected=FIRST)
    assert (second.identity, second.currents()) == (new, {"Stop": SECOND})
    assert Node(shm, backend).currents() == {"Stop": SECOND}
    backend.close()


def _dies_of_the_state_file(unlink: Any) -> Any:
    def dying(path: Path, missing_ok: bool = False) -> None:
        if not path.suffix:
            os.kill(os.getpid(), signal.SIGKILL)
        unlink(path, missing_ok=missing_ok)

    return dying


def test_segments_of_an_earlier_release_are_taken_over(shm: Path, redis_url: str) -> None:
    """An earlier release recorded the names of current segments in Redis."""
    with SegmentRegistry(redis_url, shm_dir=shm).create(STOP, capacity=8) as first:
        name = first.name
    for path in shm.glob("quorin-node-*"):
        path.unlink()
    with redis.Redis.from_url(redis_url) as client:
        client.hset("{quorin}:current", mapping={"Stop": name, "Elsewhere": "quorin_Elsewhere_0123456789ab00000001"})
    registry = SegmentRegistry(redis_url, shm_dir=shm)
    assert registry.node.currents() == {"Stop": name}, "what has no file here is another machine's"
    with registry.open_current(STOP) as again:
        assert again.name == name
    registry.discard(registry.open_current(STOP, read_only=False))
    assert SegmentRegistry(redis_url, shm_dir=shm).node.currents() == {}, "it is taken over once"
    registry.backend.close()


def test_a_process_finds_its_node_while_redis_is_away(tmp_path: Path, shm: Path) -> None:
    server = RedisServer()
    try:
        with SegmentRegistry(server.url, shm_dir=shm).create(STOP, capacity=8) as segment:
            name = segment.name
        server.kill()
        assert SegmentRegistry(server.url, shm_dir=shm).open_current(STOP).name == name
        (tmp_path / "other").mkdir()
        with pytest.raises(ConnectionFailedError):
            SegmentRegistry(server.url, shm_dir=tmp_path / "other")
        with pytest.raises(ConnectionFailedError):
            SegmentRegistry(server.url, shm_dir=shm, namespace="another")
    finally:
        server.stop()


def test_a_wiped_redis_gets_the_node_s_identity_back(shm: Path, redis_server: RedisServer) -> None:
    backend = connect(emptied(redis_server))
    node = Node(shm, backend)
    assert publish(node, FIRST)
    before = node.state()
    emptied(redis_server)
    node.confirm()
    assert backend.control.identity() == before.identity
    assert Node(shm, backend).state() == before
    backend.close()


def test_a_node_takes_the_identity_that_another_gave_a_wiped_redis(shm: Path, redis_server: RedisServer) -> None:
    backend = connect(emptied(redis_server))
    node, second = Node(shm, backend), Node(shm, backend)
    assert publish(node, FIRST, beginning=Beginning(1, 2))
    before, seen = node.state(), second.state()
    emptied(redis_server)
    new = backend.control.identity()
    assert new != before.identity
    node.confirm()
    second.confirm()
    after = Node(shm, backend).state()
    assert seen == before
    assert (after.identity, after.former, after.node) == (new, (before.identity,), before.node)
    assert (after.currents, after.beginnings) == (before.currents, before.beginnings)
    assert second.state() == node.state() == after
    assert len([path for path in shm.iterdir() if not path.suffix]) == 1
    backend.close()


def _confirm(connection: str, shm_dir: str, results: Any) -> None:
    backend = connect(connection)
    node = Node(Path(shm_dir), backend)
    node.confirm()
    results.put(node.state())
    backend.close()


def test_processes_that_take_another_identity_at_once_keep_one_file(shm: Path, redis_server: RedisServer) -> None:
    backend = connect(emptied(redis_server))
    assert publish(Node(shm, backend), FIRST, beginning=Beginning(1, 2))
    before = Node(shm, backend).state()
    emptied(redis_server)
    new = backend.control.identity()
    results = context.Queue()
    racers = [context.Process(target=_confirm, args=(redis_server.url, str(shm), results)) for _ in range(3)]
    for racer in racers:
        racer.start()
    outcomes = [results.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join(60)
    assert outcomes == [Node(shm, backend).state()] * 3
    assert (outcomes[0].identity, outcomes[0].former, outcomes[0].node) == (new, (before.identity,), before.node)
    assert (outcomes[0].currents, outcomes[0].beginnings) == (before.currents, before.beginnings)
    assert len([path for path in shm.iterdir() if not path.suffix]) == 1
    backend.close()


def test_two_addresses_of_one_server_share_a_node(shm: Path, redis_server: RedisServer) -> None:
    emptied(redis_server)
    link = redis_server.socket.parent / "link"
    link.symlink_to(redis_server.socket)
    direct, other = connect(f"unix://{redis_server.socket}"), connect(f"unix://{link}")
    assert direct.address != other.address
    assert publish(Node(shm, direct), FIRST)
    assert Node(shm, other).current("Stop") == FIRST
    assert len(Node(shm, direct).state().addresses) == 2
    direct.close()
    other.close()
    link.unlink()


def test_an_embedded_store_made_anew_is_another_deployment(tmp_path: Path, shm: Path) -> None:
    with SegmentRegistry(tmp_path / "store", shm_dir=shm).create(STOP, capacity=8):
        pass
    for path in (tmp_path / "store").iterdir():
        path.unlink()
    assert SegmentRegistry(tmp_path / "store", shm_dir=shm).node.currents() == {}
