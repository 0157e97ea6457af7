"""A cluster, and a master behind Sentinel: masters die and slots move, beside writers and readers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorin import metrics
from quorin.assembly import read
from quorin.engine.backend import Beginning, connect
from quorin.engine.backend.keys import log_keys
from quorin.engine.backend.redis_urls import slot_of
from quorin.errors import ConnectionFailedError, SegmentNotFoundError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.fleet import Node
from tests.support.fleet import until as until_so
from tests.support.redis_cluster import CLUSTER_VERSIONS, Cluster, Watched, call, not_replicating, until

ROW = make_schema("Row", [FeatureField("number", dtype.int64)])
SLOT = slot_of("quorin")
BLOCK_MS = 120_000
STREAM = log_keys("quorin", "quorin:wal").stream


class Pair:
    """A master and its replica, which takes over when the master is killed."""

    def __init__(self, servers: Cluster | Watched) -> None:
        self.servers, self.url = servers, servers.url

    def master(self) -> int:
        return self.servers.master_of(SLOT) if isinstance(self.servers, Cluster) else self.servers.master()

    def fail_over(self) -> int:
        return self.servers.fail_over(SLOT) if isinstance(self.servers, Cluster) else self.servers.fail_over()

    @contextlib.contextmanager
    def not_replicating(self) -> Iterator[None]:
        """What the master acknowledges inside the block, no replica gets; at its end the master is killed, and a
        replica takes over.
        """
        number, servers = self.master(), self.servers.servers
        with not_replicating(servers[number], servers[self._replica()]):
            yield
        if isinstance(self.servers, Cluster):
            self.servers.wait_for_other_master(SLOT, number)
        else:
            self.servers.wait_for_other_master(number)

    def _replica(self) -> int:
        return self.servers.replica_of(self.master()) if isinstance(self.servers, Cluster) else 1 - self.master()

    def repair(self) -> None:
        """Start servers that were killed, as replicas, and wait until they have what their masters have."""
        for number, server in enumerate(self.servers.servers):
            if not server.is_running:
                self.servers.restart(number)
        until(lambda: self._is_replicated())

    def _is_replicated(self) -> bool:
        replica, master = self._replica(), self.master()
        roles = [call(self.servers.servers[number], "ROLE") for number in (replica, master)]
        return roles[0][0] == b"slave" and roles[0][3] == b"connected" and roles[0][4] == roles[1][1]


@pytest.fixture(scope="module", params=[*(f"cluster-{version}" for version in CLUSTER_VERSIONS), "sentinel"])
def shared(request: pytest.FixtureRequest) -> Iterator[Pair]:
    kind, _, version = request.param.partition("-")
    servers = Cluster(version, node_timeout_ms=1000) if kind == "cluster" else Watched(CLUSTER_VERSIONS[0])
    yield Pair(servers)
    servers.close()


@pytest.fixture
def pair(shared: Pair) -> Pair:
    """All six servers run, and hold nothing."""
    shared.repair()
    shared.servers.flush()
    return shared


class Applying:
    """A node in this process: its segment, and a consumer in a thread."""

    def __init__(self, url: str, shm_dir: Path) -> None:
        shm_dir.mkdir()
        self.registry = SegmentRegistry(url, shm_dir=shm_dir)
        self.consumer = WALConsumer(url, None, registry=self.registry)
        self._thread = threading.Thread(target=self.consumer.run)
        self._thread.start()

    def numbers(self, *ids: str) -> list[int | None]:
        try:
            with self.registry.open_current(ROW) as segment:
                return [row["number"] for row in read(segment, list(ids)).to_pylist()]
        except SegmentNotFoundError:
            return [None] * len(ids)

    def close(self) -> None:
        self.consumer.stop()
        self._thread.join()
        self.consumer.close()
        self.registry.backend.close()


class Checker:
    """Writes rows with growing numbers until it is stopped, and remembers what was acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: dict[str, int] = {}
        self.count = 0
        self._producer = WALProducer(url, block_ms=BLOCK_MS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        while not self._stopping.is_set():
            entity_id = f"e{self.count % 7}"
            self._producer.write(ROW, entity_id, {"number": self.count})
            self.acknowledged[entity_id] = self.count
            self.count += 1
            self._stopping.wait(0.002)

    def wait_for_more(self, rows: int = 20) -> None:
        """Until it has written some more rows from now on."""
        wanted = self.count + rows
        until(lambda: self.count >= wanted)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._producer.close()


@pytest.fixture
def nodes(pair: Pair, tmp_path: Path) -> Iterator[list[Applying]]:
    """Two nodes of a deployment that has a schema."""
    made = [Applying(pair.url, tmp_path / name) for name in "AB"]
    backend = made[0].registry.backend
    identity, bounds = backend.log().state()
    assert made[0].registry.create_schema(ROW, Beginning(identity, bounds.last))
    until_so(lambda: all(node.registry.node.current("Row") for node in made))
    yield made
    for node in made:
        node.close()


def _serve(nodes: list[Applying], rows: dict[str, int]) -> None:
    """Wait until every node serves these rows or newer ones."""
    for node in nodes:
        until_so(lambda node=node: _at_least(node.numbers(*rows), rows))


def _at_least(numbers: list[int | None], rows: dict[str, int]) -> bool:
    return all(number is not None and number >= row for number, row in zip(numbers, rows.values(), strict=True))


def test_acknowledged_rows_are_served_after_each_failover(pair: Pair, nodes: list[Applying]) -> None:
    checker = Checker(pair.url)
    try:
        for _ in range(2):
            checker.wait_for_more()
            old = pair.fail_over()
            checker.wait_for_more()
            assert pair.master() != old
            _serve(nodes, dict(checker.acknowledged))
            pair.repair()
    finally:
        checker.stop()
    _serve(nodes, checker.acknowledged)
    ids = list(checker.acknowledged)
    assert nodes[0].numbers(*ids) == nodes[1].numbers(*ids)


def test_a_process_that_starts_after_a_failover_finds_the_new_master(pair: Pair, tmp_path: Path) -> None:
    connect(pair.url).log().append([("Row", b"x")])
    pair.fail_over()
    backend = connect(pair.url)
    assert [payload for _, payload in backend.log().read(0).entries] == [b"x"]
    backend.close()


def test_a_read_behind_an_entry_that_was_lost_says_so_although_the_log_goes_on(pair: Pair) -> None:
    reader, writer = connect(pair.url), connect(pair.url)
    log = reader.log()
    reader.control.put_schema("Row", "{}")
    (first,) = log.append([("Row", b"first")])
    pair.repair()
    with pair.not_replicating():
        (lost,) = log.append([("Row", b"lost")])
        assert log.read(first, follows=True).through == lost
    # New positions are behind the lost one, so a read behind that would find them and nothing amiss.
    until_so(lambda: writer.log().append([("Row", b"new")]))
    assert log.read(lost, follows=True).lost_tail
    assert [payload for _, payload in log.read(0, follows=True).entries] == [b"first", b"new"]
    assert log.state([first, lost])[1].lost == {lost}
    pair.repair()
    with pair.not_replicating():
        (lost,) = log.append([("Row", b"lost")])
    until_so(lambda: writer.log().append([("Row", b"new")]))
    assert log.append_and_read("Row", b"mine", after=lost)[1] is None, "such a tail is not all that the segment lacks"
    for backend in (reader, writer):
        backend.close()


def test_what_no_replica_had_is_reported_and_the_rest_applied(pair: Pair, nodes: list[Applying]) -> None:
    with WALProducer(pair.url, block_ms=BLOCK_MS) as producer:
        producer.write(ROW, "before", {"number": 1})
        _serve(nodes, {"before": 1})
        pair.repair()
        shorter = metrics.reanchored.labels("Row", "shorter")
        reported = shorter.value
        with pair.not_replicating():
            producer.write(ROW, "lost", {"number": 2})
            _serve(nodes, {"lost": 2})
        # Its position is behind that of the lost entry, so that only a look for that entry finds out.
        producer.write(ROW, "after", {"number": 3})
        _serve(nodes, {"after": 3})
        until(lambda: shorter.value >= reported + 2)
        assert [node.numbers("before", "lost", "after") for node in nodes] == [[1, 2, 3], [1, 2, 3]], "rows stay"
        producer.write(ROW, "lost", {"number": 4})
        _serve(nodes, {"lost": 4})


of_clusters = pytest.mark.parametrize("shared", [f"cluster-{version}" for version in CLUSTER_VERSIONS], indirect=True)


@of_clusters
def test_acknowledged_rows_are_served_while_and_after_their_slot_moves(pair: Pair, nodes: list[Applying]) -> None:
    cluster = pair.servers
    assert isinstance(cluster, Cluster)
    checker = Checker(pair.url)
    try:
        for _ in range(2):
            checker.wait_for_more()
            old = pair.master()
            moved: list[int] = []
            cluster.move_slot(SLOT, between=lambda: moved.append(checker.count))  # noqa: B023
            assert pair.master() != old
            assert len(moved) > 3, "several keys were moved one by one"
            checker.wait_for_more()
            _serve(nodes, dict(checker.acknowledged))
    finally:
        checker.stop()
    _serve(nodes, checker.acknowledged)


@of_clusters
def test_calls_in_the_middle_of_a_move_have_their_effect_once_the_slot_has_moved(pair: Pair) -> None:
    cluster = pair.servers
    assert isinstance(cluster, Cluster)
    backend = connect(pair.url)
    log = backend.log()
    backend.control.put_schema("Row", "{}")
    positions = log.append([("Row", b"0")])
    single: list[bytes] = []

    def between() -> None:
        payload = b"%d" % (len(single) + 1)
        with contextlib.suppress(ConnectionFailedError):  # A script needs all its keys in one place.
            positions.extend(log.append([("Row", payload)]))
        single.append(payload)
        assert backend.control.schemas() == {"Row": "{}"}, "a single key is found wherever it is"

    cluster.move_slot(SLOT, between)
    positions.extend(log.append([("Row", b"last")]))
    entries = log.read(0).entries
    assert [position for position, _ in entries] == positions
    assert entries[-1][1] == b"last"
    backend.close()


@of_clusters
def test_a_blocked_read_goes_on_at_the_slot_s_new_master(pair: Pair) -> None:
    cluster = pair.servers
    assert isinstance(cluster, Cluster)
    backend = connect(pair.url)
    log = backend.log()
    (position,) = log.append([("Row", b"first")])
    found: list[bytes] = []

    def follow() -> None:
        while not found:
            found.extend(payload for _, payload in log.read(position, block_ms=2000, follows=True).entries)

    thread = threading.Thread(target=follow)
    thread.start()
    until(lambda: b"cmd=xread" in call(cluster.servers[pair.master()], "CLIENT", "LIST"))
    cluster.move_slot(SLOT)
    log.append([("Row", b"second")])
    thread.join(60)
    assert found == [b"second"]
    backend.close()


@of_clusters
def test_a_slot_without_a_master_is_named_and_used_again_when_it_has_one(pair: Pair) -> None:
    cluster = pair.servers
    assert isinstance(cluster, Cluster)
    backend = connect(pair.url)
    backend.log().append([("Row", b"x")])
    master = pair.master()
    replica = cluster.replica_of(master)
    for number in (replica, master):
        cluster.servers[number].kill()
    with pytest.raises(ConnectionFailedError, match=rf"Redis Cluster at .*cannot be used: slot {SLOT}: "):
        backend.log().append([("Row", b"y")])
    until(lambda: b"cluster_state:fail" in cluster.call_any("CLUSTER", "INFO"))
    with pytest.raises(ConnectionFailedError, match=rf"slot {SLOT}: "):
        connect(pair.url).log().append([("Row", b"y")])
    pair.repair()
    until_so(lambda: backend.log().append([("Row", b"z")]))
    backend.close()


@pytest.mark.parametrize("shared", [f"cluster-{CLUSTER_VERSIONS[0]}"], indirect=True)
def test_nodes_in_processes_of_their_own_follow_the_new_master(pair: Pair, tmp_path: Path) -> None:
    fleet = [Node(pair.url, tmp_path / name) for name in "CD"]
    servers = [node.start() for node in fleet]
    registry = fleet[0].registry()
    try:
        with WALProducer(pair.url, registry=registry, block_ms=BLOCK_MS) as producer:
            identity, bounds = registry.backend.log().state()
            assert registry.create_schema(ROW, Beginning(identity, bounds.last))
            producer.write(ROW, "a", {"number": 1})
            for server in servers:
                until_so(lambda server=server: [row["number"] for row in server.rows("Row")] == [1])
            pair.repair()
            pair.fail_over()
            producer.write(ROW, "a", {"number": 2})
            for server in servers:
                until_so(lambda server=server: [row["number"] for row in server.rows("Row")] == [2])
    finally:
        registry.backend.close()
        for node in fleet:
            node.stop()
