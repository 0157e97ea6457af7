"""After a failover behind one address, connections leave the server that was demoted."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from quorin import assembly
from quorin.engine.backend import connect
from quorin.errors import ConnectionFailedError
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.proxy import Proxy
from tests.support.redis_server import REDIS_EXECUTABLES, RedisServer

HANGS_SECONDS = 120


class Trips(FeatureSchema):
    version = 1
    fields = [FeatureField("distance", dtype.float32)]


class Pair:
    """A master and its replica behind one address."""

    def __init__(self, version: str) -> None:
        self.ports = [_free_port(), _free_port()]
        options = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
        self.servers = [RedisServer("--port", str(port), *options, version=version) for port in self.ports]
        self.master = 0
        self._follow(1, 0)
        self.proxy = Proxy(self.servers[0].socket)

    def fail_over(self, *, moves_address: bool = True) -> None:
        """Make the replica the master, and the master its replica, without closing a connection or losing a write."""
        old, new = self.master, 1 - self.master
        until(lambda: _call(self.servers[old], "ROLE")[1] == _call(self.servers[new], "ROLE")[4])
        _call(self.servers[new], "REPLICAOF", "NO", "ONE")
        self._follow(old, new)
        self.master = new
        if moves_address:
            self.move_address()

    def move_address(self) -> None:
        self.proxy.target = self.servers[self.master].socket

    def close(self) -> None:
        self.proxy.close()
        for server in self.servers:
            server.stop()

    def _follow(self, replica: int, master: int) -> None:
        _call(self.servers[replica], "REPLICAOF", "127.0.0.1", str(self.ports[master]))
        until(lambda: _call(self.servers[replica], "ROLE")[3] == b"connected")


def _call(server: RedisServer, *words: str) -> list[bytes]:
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)  # type: ignore[no-any-return]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + HANGS_SECONDS
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.fixture(params=list(REDIS_EXECUTABLES))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


def test_every_kind_of_call_goes_to_the_new_master(pair: Pair) -> None:
    backend = connect(pair.proxy.url)
    log = backend.log()
    backend.control.put_schema("A", "{}")
    log.append([("A", b"before")])
    calls: list[Callable[[], object]] = [
        lambda: log.append([("A", b"one")]),  # a plain XADD
        lambda: log.append([("A", b"two"), ("A", b"three")]),  # a script
        lambda: log.append_and_read("A", b"four", after=0),  # several commands at once
        lambda: backend.control.put_schema("A", "[]"),
    ]
    for call in calls:
        pair.fail_over()
        call()
    assert [payload for _, payload in log.read(0).entries] == [b"before", b"one", b"two", b"three", b"four"]
    assert backend.control.schemas() == {"A": "[]"}
    backend.close()


def test_threads_that_only_read_follow_one_that_was_refused(pair: Pair) -> None:
    backend = connect(pair.proxy.url)
    go, read = threading.Event(), threading.Event()

    def read_twice() -> None:
        backend.control.schemas()
        read.set()
        go.wait(HANGS_SECONDS)
        backend.control.schemas()
        read.set()

    thread = threading.Thread(target=read_twice)
    thread.start()
    assert read.wait(HANGS_SECONDS)
    read.clear()
    pair.fail_over()
    backend.control.put_schema("A", "{}")
    reads = _reads(pair)
    go.set()
    thread.join(HANGS_SECONDS)
    assert read.is_set()
    assert _reads(pair) == reads + 1
    backend.close()


def _reads(pair: Pair) -> int:
    """How often the master was asked for a hash."""
    with redis.Redis(unix_socket_path=str(pair.servers[pair.master].socket)) as client:
        return int(client.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"])


def test_a_blocked_read_is_repeated_on_the_new_master(pair: Pair) -> None:
    backend = connect(pair.proxy.url)
    log = backend.log()
    (position,) = log.append([("A", b"first")])
    found: list[bytes] = []

    def read() -> None:
        while not found:
            found.extend(payload for _, payload in log.read(position, block_ms=2000).entries)

    thread = threading.Thread(target=read)
    thread.start()
    old = pair.servers[pair.master]
    until(lambda: b"cmd=xread" in b"".join([_call(old, "CLIENT", "LIST")]))  # type: ignore[list-item]
    pair.fail_over()
    log.append([("A", b"second")])
    thread.join(HANGS_SECONDS)
    assert found == [b"second"]
    backend.close()


def test_a_producer_that_may_block_waits_for_the_new_master(pair: Pair) -> None:
    producer = WALProducer(pair.proxy.url, block_ms=1000 * HANGS_SECONDS)
    first = producer.write(Trips, "a", {"distance": 1.0})
    pair.fail_over(moves_address=False)
    with pytest.raises(ConnectionFailedError, match="read only replica"):
        WALProducer(pair.proxy.url).write(Trips, "a", {"distance": 2.0})
    moving = threading.Timer(0.5, pair.move_address)
    moving.start()
    assert producer.write(Trips, "a", {"distance": 3.0}) > first
    moving.join()
    producer.close()


def test_a_consumer_with_a_history_goes_on_and_trims(pair: Pair, tmp_path: Path) -> None:
    registry = SegmentRegistry(pair.proxy.url, shm_dir=tmp_path)
    registry.create(Trips, capacity=16).close()
    producer = WALProducer(pair.proxy.url, registry=registry)
    consumer = WALConsumer(
        pair.proxy.url,
        None,
        registry=registry,
        offline=ParquetDatasetStore(tmp_path / "history"),
        flush_interval_seconds=0.05,
    )
    thread = threading.Thread(target=consumer.run)
    thread.start()
    with contextlib.ExitStack() as stack:
        stack.callback(thread.join)
        stack.callback(consumer.stop)
        producer.wait(Trips, producer.write(Trips, "a", {"distance": 1.0}), timeout_ms=1000 * HANGS_SECONDS)
        pair.fail_over()
        position = producer.write(Trips, "a", {"distance": 2.0})
        producer.wait(Trips, position, timeout_ms=1000 * HANGS_SECONDS)
        with registry.open_current(Trips) as segment:
            assert assembly.assemble(segment, "a").tolist() == [2.0]
        new = connect(pair.servers[pair.master].url).log()
        until(lambda: new.bounds().trimmed >= position)
    consumer.close()
    producer.close()
