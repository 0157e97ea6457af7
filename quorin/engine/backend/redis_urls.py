"""From a Redis URL or a redis-py client to a route to its servers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import redis

from quorin.engine.backend.redis_routes import (
    ClusterRoute,
    ClusterTopology,
    FixedRoute,
    SentinelRoute,
    Settings,
    slot_of,
)
from quorin.engine.format.partition import check_count
from quorin.engine.urls import REDIS_FORM, is_malformed, shown, split_credentials
from quorin.errors import ConnectionFailedError

if TYPE_CHECKING:
    from quorin.engine.backend.redis_routes import Endpoint, Route

_REDIS_PORT, _SENTINEL_PORT = 6379, 26379
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]+))?")
_SENTINEL_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}
_POOLS = redis.ConnectionPool, redis.BlockingConnectionPool


def route_of_url(url: str, namespace: str) -> tuple[Route, int | None]:
    """The route that a URL of one of ``REDIS_SCHEMES`` names, and its number of partitions, if it has one.

    :raises ConnectionFailedError: for a wrong URL. The text names no user and no password.
    """
    if is_malformed(url):
        raise ConnectionFailedError(f"the Redis URL {shown(url)} is wrong: expected {REDIS_FORM}")
    # The parser does not get user and password, because its errors quote their input.
    bare, user, password = split_credentials(url)
    scheme, _, rest = bare.partition("://")
    scheme, _, is_sentinel = scheme.partition("+")
    before_query, _, words = rest.partition("?")
    hosts, *path = before_query.split("/")
    query = dict(parse_qsl(words, keep_blank_values=True))
    is_cluster = _is_cluster(url, scheme, query.pop("cluster", "false"))
    partitions = _partitions(url, query.pop("partitions", None))
    login = {name: query.pop(word) for word, name in _SENTINEL_LOGIN.items() if is_sentinel and word in query}
    service = path.pop(0) if is_sentinel else ""
    database = path[0] if path else ""
    settings = _settings(url, scheme, f"{before_query if scheme == 'unix' else f'/{database}'}?{urlencode(query)}")
    for name, value in (("username", user), ("password", password)):
        if value:
            settings.values[name] = value
    if is_sentinel:
        return SentinelRoute(_endpoints(hosts, _SENTINEL_PORT), service, settings, login), partitions
    endpoints = _endpoints(hosts, _REDIS_PORT)
    if is_cluster:
        return ClusterRoute(ClusterTopology(endpoints, settings), slot_of(namespace)), partitions
    if scheme != "unix":
        settings.values["host"], settings.values["port"] = endpoints[0]
    return FixedRoute(settings), partitions


def route_of_client(client: Any, namespace: str) -> Route:
    """The route of a ``redis.Redis`` or ``redis.RedisCluster``; its settings are copied.

    :raises ConnectionFailedError: for another client, or another kind of pool.
    """
    if isinstance(client, redis.RedisCluster):
        return ClusterRoute(_topology_of(client), slot_of(namespace))
    pool: Any = getattr(client, "connection_pool", None)
    if not isinstance(client, redis.Redis) or type(pool) not in _POOLS:
        kind = f"{type(client).__module__}.{type(client).__name__}"
        raise ConnectionFailedError(
            f"expected a redis.Redis with a plain connection pool or a redis.RedisCluster, got {kind}"
        )
    return FixedRoute(Settings(pool.connection_class, dict(pool.connection_kwargs)))


def _topology_of(client: redis.RedisCluster) -> ClusterTopology:
    cluster: Any = client
    nodes = cluster.get_nodes()
    pool = cluster.get_redis_connection(nodes[0]).connection_pool
    of_the_client = "host", "port", "redis_connect_func"
    settings = {name: value for name, value in pool.connection_kwargs.items() if name not in of_the_client}
    seeds = tuple((str(node.host), int(node.port)) for node in nodes)
    remap = cluster.nodes_manager.address_remap
    return ClusterTopology(seeds, Settings(pool.connection_class, settings), remap)


def _is_cluster(url: str, scheme: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ConnectionFailedError(f"the Redis URL {shown(url)} is wrong: expected cluster=true or cluster=false")
    if text == "true" and scheme == "unix":
        raise ConnectionFailedError(f"the Redis URL {shown(url)} is wrong: a cluster is not reached by a unix socket")
    return text == "true"


def _partitions(url: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise ConnectionFailedError(f"the Redis URL {shown(url)} is wrong: expected a number of partitions, such as 16")
    return check_count(int(text))


def _settings(url: str, scheme: str, rest: str) -> Settings:
    try:
        parsed: dict[str, Any] = dict(redis.connection.parse_url(f"{scheme}://{rest}"))  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConnectionFailedError(f"the Redis URL {shown(url)} is wrong: {error}") from None
    return Settings(parsed.pop("connection_class", redis.Connection), parsed)


def _endpoints(hosts: str, port: int) -> tuple[Endpoint, ...]:
    found = [_HOST_AND_PORT.fullmatch(host) for host in hosts.split(",")]
    return tuple((match[1].strip("[]") or "localhost", int(match[2] or port)) for match in found if match)
