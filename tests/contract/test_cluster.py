"""Connections to a cluster and to a service behind Sentinel: what they take, and what their errors name."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from quorin.engine.backend import connect, logs
from quorin.engine.backend.redis_urls import slot_of
from quorin.engine.ops.health import check_deployment
from quorin.errors import ConnectionFailedError
from quorin.wal import Token
from tests.contract.test_connect import SECRET, failure
from tests.support.http import make_certificate
from tests.support.redis_cluster import CLUSTER_VERSIONS, SERVICE, Cluster, Watched, call, free_ports, until
from tests.support.redis_server import RedisServer

ALL_SLOTS = ("CLUSTER", "ADDSLOTSRANGE", 0, 16383)


@pytest.fixture
def service(watched: Callable[[], Watched]) -> Watched:
    """The session's service behind Sentinel, empty."""
    servers = watched()
    servers.flush()
    return servers


@pytest.fixture
def lone() -> Iterator[Callable[..., RedisServer]]:
    """Starts clusters of one server."""
    made: list[RedisServer] = []

    def start(*arguments: str, password: str = "") -> RedisServer:
        bus = ("--cluster-port", str(free_ports(1)[0]))
        server = RedisServer("--cluster-enabled", "yes", *bus, *arguments, version=CLUSTER_VERSIONS[0])
        made.append(server)
        call(server, *ALL_SLOTS, password=password)
        until(lambda: b"cluster_state:ok" in call(server, "CLUSTER", "INFO", password=password))
        return server

    yield start
    for server in made:
        server.stop()


def test_one_seed_that_answers_is_enough(redis_cluster: Cluster) -> None:
    (free_port,) = free_ports(1)
    url = f"redis://127.0.0.1:{free_port},127.0.0.1:{redis_cluster.ports[4]}?cluster=true"
    backend = connect(url)
    assert backend.address == url
    backend.log().append([("A", b"x")])
    assert backend.facts()["role"] == "master"
    backend.close()


def test_namespaces_are_in_slots_of_their_own(redis_cluster: Cluster) -> None:
    names = ["quorin", "a", "b", "c", "d", "e"]
    assert len({redis_cluster.master_of(slot_of(name)) for name in names}) == 3
    for name in names:
        backend = connect(redis_cluster.url, namespace=name)
        backend.control.put_schema("A", f'"{name}"')
        backend.log().append([("A", name.encode())])
        assert backend.control.schemas() == {"A": f'"{name}"'}
        assert [payload for _, payload in backend.log().read(0).entries] == [name.encode()]
        backend.close()


def test_a_client_of_a_cluster_gives_its_settings_and_keeps_its_connections(redis_cluster: Cluster) -> None:
    with redis.RedisCluster(host="127.0.0.1", port=redis_cluster.ports[1], socket_timeout=7) as client:
        backend = connect(client)
        backend.log().append([("A", b"x")])
        backend.close()
        assert client.xlen("{quorin}:quorin:wal") == 1


def test_a_connection_goes_to_another_process(redis_cluster: Cluster, service: Watched) -> None:
    for url in (redis_cluster.url, service.url):
        backend = connect(url)
        backend.log().append([("A", b"x")])
        copy = pickle.loads(pickle.dumps(backend))
        assert [payload for _, payload in copy.log().read(0).entries] == [b"x"]
        copy.close()
        backend.close()


def test_a_plain_url_of_a_node_works_where_the_keys_are_and_names_the_cluster_elsewhere(redis_cluster: Cluster) -> None:
    master = redis_cluster.master_of(slot_of("quorin"))
    for number, port in enumerate(redis_cluster.ports):
        backend = connect(f"redis://127.0.0.1:{port}")
        if number == master:
            backend.log().append([("A", b"x")])
        else:
            with pytest.raises(ConnectionFailedError, match=r"is a node of a cluster, and slot 14691 .*\?cluster=true"):
                backend.log().append([("A", b"x")])
        backend.close()


def test_a_server_that_is_no_cluster_is_named(service: Watched) -> None:
    url = f"redis://:{SECRET}@127.0.0.1:{service.ports[0]}?cluster=true"
    call(service.servers[0], "ACL", "SETUSER", "default", f">{SECRET}")
    try:
        assert failure(url).endswith("is not a cluster: leave out ?cluster=true")
    finally:
        call(service.servers[0], "ACL", "SETUSER", "default", "nopass", password=SECRET)


def test_a_cluster_and_a_sentinel_that_are_away_are_named() -> None:
    (free_port,) = free_ports(1)
    seeds = f"127.0.0.1:{free_port},localhost:{free_port}"
    text = failure(f"redis://u:{SECRET}@{seeds}?cluster=true")
    assert f"Redis Cluster at redis://{seeds}?cluster=true cannot be used: " in text
    assert "slot 14691: no node of the cluster can be reached" in text
    text = failure(f"redis+sentinel://u:{SECRET}@{seeds}/{SERVICE}?sentinel_password={SECRET}")
    assert f"Redis behind Sentinel at redis+sentinel://{seeds}/{SERVICE}/0 cannot be used: " in text
    assert f"no master of the service '{SERVICE}' was found: " in text
    assert str(free_port) in text.partition("was found")[2]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"redis://:{SECRET}@h:1?cluster=maybe", "expected cluster=true or cluster=false"),
        (f"redis://:{SECRET}@h:1/2?cluster=true", "database 2: a cluster has only the database 0"),
        (f"unix://:{SECRET}@/run/r.sock?cluster=true", "a cluster is not reached by a unix socket"),
        (f"redis://:{SECRET}@h:1,g:2", r"expected redis://"),
        (f"redis://:{SECRET}@h:1,g:2?cluster=false", "redis://… is wrong"),
        (f"redis+sentinel://:{SECRET}@h:1", r"redis+sentinel://[user:password@]host:port[,host:port]/service"),
        (f"redis+sentinel://:{SECRET}@h:1/a b", "redis+sentinel://… is wrong"),
        (f"rediss://:{SECRET}@h:1,?cluster=true", "rediss://… is wrong"),
        (f"rediss://:{SECRET}@h:1?cluster=true&socket_timeout=soon", "the Redis URL rediss://h:1 is wrong"),
        (f"sentinel://:{SECRET}@h:1/a", "URL scheme 'sentinel' is not known"),
    ],
)
def test_wrong_urls_are_refused_without_their_password(url: str, expected: str) -> None:
    assert expected in failure(url)


def test_a_cluster_s_users_and_passwords(lone: Callable[..., RedisServer]) -> None:
    (port,) = free_ports(1)
    commands = ("-@all", "+@read", "+@write", "+@scripting", "+@connection", "+cluster|slots")
    rules = ("resetkeys", "~{quorin}:*", "~{quorin/*", *commands)
    user = ("--user", "ann", "on", f">{SECRET}", *rules)
    server = lone("--port", str(port), "--requirepass", f"{SECRET}/x", *user, password=f"{SECRET}/x")
    seed = f"127.0.0.1:{port}?cluster=true"
    for login in (f":{SECRET}%2Fx", f"ann:{SECRET}"):
        backend = connect(f"redis://{login}@{seed}")
        backend.settle_partitions(4)
        results = backend.append_together([(log, [("A", b"x")]) for log in logs(backend)])
        assert all(isinstance(result, Token) for result in results)
        assert SECRET not in backend.address
        backend.close()
    assert "Authentication required" in failure(f"redis://{seed}")
    assert "invalid username-password pair" in failure(f"redis://ann:{SECRET}wrong@{seed}")
    call(server, "ACL", "SETUSER", "ann", "-cluster|slots", password=f"{SECRET}/x")
    assert "no permissions to run the 'cluster|slots' command" in failure(f"redis://ann:{SECRET}@{seed}")


def test_a_cluster_without_slots_is_named(lone: Callable[..., RedisServer]) -> None:
    (port,) = free_ports(1)
    server = lone("--port", str(port))
    call(server, "CLUSTER", "FLUSHSLOTS")
    assert "no node of the cluster has a slot yet" in failure(f"redis://127.0.0.1:{port}?cluster=true")
    backend = connect(f"redis://127.0.0.1:{port}?cluster=true", must_answer=False)
    call(server, *ALL_SLOTS)
    until(lambda: b"cluster_state:ok" in call(server, "CLUSTER", "INFO"))
    backend.log().append([("A", b"x")])
    backend.close()


def test_the_doctor_counts_replicas_of_a_cluster_s_master(
    redis_cluster: Cluster, lone: Callable[..., RedisServer], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    lone("--port", str(port))
    for url, status in ((redis_cluster.url, "ok"), (f"redis://127.0.0.1:{port}?cluster=true", "warning")):
        checks = [check.as_dict() for check in check_deployment(url, shm_dir=tmp_path)]
        assert [check["status"] for check in checks if check["name"] == "replicas of Redis"] == [status]


def test_tls_is_spoken_with_every_node_of_a_cluster(tmp_path: Path, lone: Callable[..., RedisServer]) -> None:
    certificate, key = make_certificate(tmp_path)
    (port,) = free_ports(1)
    files = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate)
    lone("--tls-port", str(port), "--tls-cluster", "yes", "--tls-auth-clients", "no", *map(str, files))
    backend = connect(f"rediss://127.0.0.1:{port}?cluster=true&ssl_ca_certs={certificate}")
    backend.log().append([("A", b"x")])
    assert backend.address == f"rediss://127.0.0.1:{port}?cluster=true"
    backend.close()
    assert "certificate verify failed" in failure(f"rediss://127.0.0.1:{port}?cluster=true")


def test_a_service_with_passwords_and_a_database() -> None:
    servers = Watched(CLUSTER_VERSIONS[0], password=SECRET, down_after_ms=60_000)
    try:
        call(servers.sentinel, "ACL", "SETUSER", "default", f">{SECRET}2")
        login, place = f":{SECRET}@", f"127.0.0.1:{servers.ports[2]}/{SERVICE}/3"
        backend = connect(f"redis+sentinel://{login}{place}?sentinel_password={SECRET}2")
        assert backend.address == f"redis+sentinel://{place}"
        backend.log().append([("A", b"x")])
        assert b"db3:keys=" in servers.call(0, "INFO", "keyspace")
        backend.close()
        assert "Authentication required" in failure(f"redis+sentinel://{login}{place}")
        assert "Authentication required" in failure(f"redis+sentinel://{place}?sentinel_password={SECRET}2")
        assert "invalid" in failure(f"redis+sentinel://:wrong{SECRET}@{place}?sentinel_password={SECRET}2")
    finally:
        servers.close()


def test_a_service_that_is_not_known_and_a_replica_in_a_master_s_place_are_named(service: Watched) -> None:
    sentinel = f"redis+sentinel://127.0.0.1:{service.ports[2]}"
    assert "no master of the service 'other' was found: Sentinel knows none" in failure(f"{sentinel}/other")
    replica = service.ports[1 - service.master()]
    call(service.sentinel, "SENTINEL", "MONITOR", "other", "127.0.0.1", replica, 1)
    try:
        assert f"127.0.0.1:{replica}, which Sentinel names, is not a master" in failure(f"{sentinel}/other")
    finally:
        call(service.sentinel, "SENTINEL", "REMOVE", "other")
