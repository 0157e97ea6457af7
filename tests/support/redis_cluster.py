"""Real clusters of three masters and three replicas, and a master and a replica behind Sentinel, for tests."""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import redis

from tests.support.redis_server import REDIS_EXECUTABLES, RedisServer

__all__ = ["CLUSTER_VERSIONS", "Cluster", "Watched", "call", "clusters", "redis_cluster", "watched"]

MASTERS, SLOTS = 3, 16384
SERVICE = "features"
CLUSTER_VERSIONS = [version for version in REDIS_EXECUTABLES if int(version.partition(".")[0]) >= 7]
"""Those that take a port for the cluster's bus, so that tests use ports that are free."""

_Servers = TypeVar("_Servers", "Cluster", "Watched")
_REPLICATION = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


class Cluster:
    """Three masters with a third of the slots each, and a replica of each master."""

    def __init__(self, version: str, *arguments: str, node_timeout_ms: int = 15_000) -> None:
        ports = free_ports(4 * MASTERS)
        self.ports, bus_ports = ports[: 2 * MASTERS], ports[2 * MASTERS :]
        options = ("--cluster-enabled", "yes", "--cluster-replica-validity-factor", "0", *_REPLICATION, *arguments)
        # Nodes that wait less for each other also tell each other sooner who they are.
        options += ("--cluster-node-timeout", "2000", "--cluster-allow-replica-migration", "no")

        def start(ports: tuple[int, int]) -> RedisServer:
            return RedisServer("--port", str(ports[0]), "--cluster-port", str(ports[1]), *options, version=version)

        with ThreadPoolExecutor(len(self.ports)) as threads:
            self.servers = list(threads.map(start, zip(self.ports, bus_ports, strict=True)))
        self.ids = [call(server, "CLUSTER", "MYID").decode() for server in self.servers]
        self._join(bus_ports)
        for server in self.servers:
            call(server, "CONFIG", "SET", "cluster-node-timeout", node_timeout_ms)

    @property
    def url(self) -> str:
        """Of all nodes, as seeds."""
        return f"redis://{','.join(f'127.0.0.1:{port}' for port in self.ports)}?cluster=true"

    def master_of(self, slot: int) -> int:
        """The number of the server that a server which runs takes for the slot's master."""
        master = self._master_of(next(server for server in self.servers if server.is_running), slot)
        assert master is not None, f"slot {slot} has no master"
        return master

    def _master_of(self, server: RedisServer, slot: int) -> int | None:
        for first, last, (_, port, *_), *_ in call(server, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.ports.index(port)
        return None

    def slots_of(self, master: int) -> frozenset[int]:
        """The slots that a server is the master of."""
        ranges = self.call_any("CLUSTER", "SLOTS")
        of_master = (range(first, last + 1) for first, last, (_, port, *_), *_ in ranges if port == self.ports[master])
        return frozenset(slot for found in of_master for slot in found)

    def replica_of(self, master: int) -> int:
        """The number of a server that is a replica of this one now."""
        for number, server in enumerate(self.servers):
            if server.is_running and call(server, "ROLE")[:3] == [b"slave", b"127.0.0.1", self.ports[master]]:
                return number
        raise AssertionError(f"server {master} has no replica")

    def call_any(self, *words: Any) -> Any:
        """The answer of a server that runs."""
        return call(next(server for server in self.servers if server.is_running), *words)

    def fail_over(self, slot: int) -> int:
        """Kill the slot's master and wait until its replica has taken over; returns the killed server's number."""
        old = self.master_of(slot)
        self.servers[old].kill()
        self.wait_for_other_master(slot, old)
        return old

    def wait_for_other_master(self, slot: int, old: int) -> None:
        """Until another server than this one is the slot's master."""
        until(lambda: self.master_of(slot) != old and self._is_served(self.master_of(slot)))

    @contextlib.contextmanager
    def not_replicating(self, slot: int) -> Iterator[None]:
        """:func:`not_replicating` for the slot's master, until its replica has taken over."""
        old = self.master_of(slot)
        with not_replicating(self.servers[old], self.servers[self.replica_of(old)]):
            yield
        self.wait_for_other_master(slot, old)

    def repair(self) -> None:
        """Start servers that were killed, as replicas, and wait until each replica has what its master has."""
        for number, server in enumerate(self.servers):
            if not server.is_running:
                self.restart(number)
        until(lambda: all(map(self._is_replicated, self.masters())))

    def _is_replicated(self, master: int) -> bool:
        of_master = call(self.servers[master], "ROLE")
        roles = [call(server, "ROLE") for server in self.servers]
        mine = [one for one in roles if one[:3] == [b"slave", b"127.0.0.1", self.ports[master]]]
        # The master's offset was read first: beside writes, a replica that has as much may have more.
        return len(mine) == 1 and mine[0][3] == b"connected" and mine[0][4] >= of_master[1]

    def move_slot(self, slot: int, between: Callable[[], None] = lambda: None) -> None:
        """Move a slot to another master as ``redis-cli --cluster reshard`` does; ``between``: after each key."""
        source = self.master_of(slot)
        target = next(number for number in self.masters() if number != source)
        self._set_slot(target, slot, "IMPORTING", self.ids[source])
        self._set_slot(source, slot, "MIGRATING", self.ids[target])
        between()
        while keys := call(self.servers[source], "CLUSTER", "GETKEYSINSLOT", slot, 1):
            call(self.servers[source], "MIGRATE", "127.0.0.1", self.ports[target], "", 0, 10_000, "KEYS", *keys)
            between()
        for number in (target, source, *self.masters()):
            self._set_slot(number, slot, "NODE", self.ids[target])
        # A replica learns it from others; one that did not, and took over, would not claim the slot.
        until(lambda: all(self._master_of(server, slot) == target for server in self.servers if server.is_running))

    def masters(self) -> list[int]:
        """The numbers of the servers that run and are masters with slots."""
        owners = {self.ports.index(range_[2][1]) for range_ in self.call_any("CLUSTER", "SLOTS")}
        return sorted(number for number in owners if self.servers[number].is_running)

    def restart(self, number: int) -> None:
        """Start a server that was killed; it becomes the replica of the one that took over."""
        self.servers[number].start()

    def flush(self) -> None:
        """Remove everything."""
        for number in self.masters():
            call(self.servers[number], "FLUSHALL")

    def close(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.stop()

    def _join(self, bus_ports: list[int]) -> None:
        for number, server in enumerate(self.servers):
            call(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < MASTERS:
                first, last = SLOTS * number // MASTERS, SLOTS * (number + 1) // MASTERS - 1
                call(server, "CLUSTER", "ADDSLOTSRANGE", first, last)
            for port, bus_port in zip(self.ports[:number], bus_ports, strict=False):
                call(server, "CLUSTER", "MEET", "127.0.0.1", port, bus_port)
        for server in self.servers:
            until(lambda: all(number.encode() in call(server, "CLUSTER", "NODES") for number in self.ids))  # noqa: B023
        for number in range(MASTERS, 2 * MASTERS):
            call(self.servers[number], "CLUSTER", "REPLICATE", self.ids[number - MASTERS])
        until(lambda: all(map(self._is_served, range(2 * MASTERS))))
        until(lambda: all(call(server, "ROLE")[3] == b"connected" for server in self.servers[MASTERS:]))
        # Every node knows each master's replica.
        until(lambda: all(self._lists_replicas(server) for server in self.servers))

    def _lists_replicas(self, server: RedisServer) -> bool:
        return all(len(range_) == 4 for range_ in call(server, "CLUSTER", "SLOTS"))

    def _is_served(self, number: int) -> bool:
        return b"cluster_state:ok" in call(self.servers[number], "CLUSTER", "INFO")

    def _set_slot(self, number: int, slot: int, *words: str) -> None:
        call(self.servers[number], "CLUSTER", "SETSLOT", slot, *words)


class Watched:
    """A master and its replica, and one Sentinel that makes the replica the master when the master is down."""

    def __init__(self, version: str, *, down_after_ms: int = 1000, password: str = "") -> None:
        self.ports = free_ports(3)
        login = ("--requirepass", password, "--masterauth", password) if password else ()
        self.password = password
        self.servers = [
            RedisServer("--port", str(port), *_REPLICATION, *login, version=version) for port in self.ports[:2]
        ]
        self.call(1, "REPLICAOF", "127.0.0.1", self.ports[0])
        until(lambda: self.call(1, "ROLE")[3] == b"connected")
        settings = [
            f"port {self.ports[2]}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 1",
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}",
            f"sentinel failover-timeout {SERVICE} 1000",
            *([f"sentinel auth-pass {SERVICE} {password}"] if password else []),
        ]
        self.sentinel = RedisServer(sentinel="\n".join(settings), version=version)
        until(lambda: b"slave0" in self.call(0, "INFO", "replication") and self._knows_replica())

    @property
    def url(self) -> str:
        """Of the service that Sentinel watches."""
        login = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{login}127.0.0.1:{self.ports[2]}/{SERVICE}"

    def call(self, number: int, *words: Any) -> Any:
        """The answer of a server."""
        return call(self.servers[number], *words, password=self.password)

    def master(self) -> int:
        """The number of the server that Sentinel names."""
        _, port = call(self.sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return self.ports.index(int(port))

    def fail_over(self) -> int:
        """Kill the master and wait until its replica has taken over; returns the killed server's number."""
        old = self.master()
        self.servers[old].kill()
        self.wait_for_other_master(old)
        return old

    def wait_for_other_master(self, old: int) -> None:
        """Until another server than this one is the master."""
        until(lambda: self.master() != old and self._is_up() and self.call(self.master(), "ROLE")[0] == b"master")

    def restart(self, number: int) -> None:
        """Start a server that was killed, as the master's replica: Sentinel would make it that after ten seconds."""
        self.servers[number].start()
        self.call(number, "REPLICAOF", "127.0.0.1", self.ports[self.master()])

    def flush(self) -> None:
        """Remove everything."""
        self.call(self.master(), "FLUSHALL")

    def close(self) -> None:
        """End all servers."""
        for server in (self.sentinel, *self.servers):
            server.stop()

    def _is_up(self) -> bool:
        """Whether Sentinel holds the master for up, and no failover is going on."""
        words = call(self.sentinel, "SENTINEL", "MASTER", SERVICE)
        return bool(words[words.index(b"flags") + 1] == b"master")

    def _knows_replica(self) -> bool:
        return len(call(self.sentinel, "SENTINEL", "REPLICAS", SERVICE)) == 1


@contextlib.contextmanager
def not_replicating(master: RedisServer, replica: RedisServer) -> Iterator[None]:
    """What the master acknowledges inside the block, its replica does not get; at its end the master is killed."""
    replica.signal(signal.SIGSTOP)
    try:
        call(master, "CLIENT", "KILL", "TYPE", "replica")
        yield
        master.kill()
    finally:
        replica.signal(signal.SIGCONT)


def call(server: RedisServer, *words: Any, password: str = "") -> Any:
    """A server's answer as it is, without a redirection."""
    with redis.Redis(unix_socket_path=str(server.socket), password=password or None) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition, which a server that does not answer yet does not fulfil."""
    ends = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.exceptions.RedisError):
            if condition():
                return
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.fixture(scope="session")
def clusters() -> Iterator[Callable[[], Cluster]]:
    """A cluster of the newest server for the whole session, started when it is first asked for. Its servers stay."""
    yield from _started_once(lambda: Cluster(CLUSTER_VERSIONS[-1]))


@pytest.fixture(scope="session")
def watched() -> Iterator[Callable[[], Watched]]:
    """The same behind Sentinel."""
    yield from _started_once(lambda: Watched(CLUSTER_VERSIONS[0], down_after_ms=60_000))


def _started_once(start: Callable[[], _Servers]) -> Iterator[Callable[[], _Servers]]:
    with contextlib.ExitStack() as stack:

        @functools.cache
        def started() -> _Servers:
            servers = start()
            stack.callback(servers.close)
            return servers

        yield started


@pytest.fixture
def redis_cluster(clusters: Callable[[], Cluster]) -> Cluster:
    """The session's cluster, empty."""
    cluster = clusters()
    cluster.flush()
    return cluster
