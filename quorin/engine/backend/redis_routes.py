"""Which server a connection goes to: a fixed one, the master that Sentinel names, or the master of a cluster's slot.

All keys of a namespace carry it as their hash tag, so they are in one slot, and one master has them all. Only logs of
partitions have hash tags of their own, and so routes of their own on a cluster.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, NodesManager
from redis.crc import key_slot
from redis.exceptions import RedisClusterException, SlotNotCoveredError
from redis.retry import Retry
from redis.sentinel import Sentinel

from quorin.engine.paths import absolute
from quorin.errors import ConnectionFailedError

Endpoint = tuple[str, int]
"""Host and port."""

_DEFAULTS: dict[str, Any] = {"socket_connect_timeout": 2.0, "socket_timeout": 5.0}
_OF_POOLS = ("max_connections", "timeout")
_PATHS = ("path", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_NEEDS_PROTOCOL_3 = ("maint_notifications", "oss_cluster_maint", "event_dispatcher", "cache")
_NOT_OF_A_CLUSTER = "Cluster mode is not enabled", "cluster support disabled"


class NoMasterError(redis.exceptions.ConnectionError):
    """No server is known to be the master now; another attempt may find one."""


class Settings:
    """How connections are made: answers as bytes in protocol 2, with timeouts, and with no retries of their own."""

    def __init__(self, connection_class: Any, settings: dict[str, Any]) -> None:
        settings = {
            name: str(absolute(value)) if name in _PATHS and value else value
            for name, value in settings.items()
            if name not in _OF_POOLS and not name.startswith(_NEEDS_PROTOCOL_3)
        }
        for name, value in _DEFAULTS.items():
            if settings.get(name) is None:
                settings[name] = value
        self.connection_class = connection_class
        self.values: dict[str, Any] = settings | {
            "protocol": 2,
            "decode_responses": False,
            "encoding": "utf-8",
            "retry": Retry(NoBackoff(), 0),
        }

    @property
    def scheme(self) -> str:
        """Of URLs, with ``s`` for TLS."""
        return "rediss" if issubclass(self.connection_class, redis.SSLConnection) else "redis"

    def open(self, address: str, **endpoint: Any) -> Any:
        """A connection that connects when it is first used.

        :raises ConnectionFailedError: for a setting that redis-py does not know.
        """
        try:
            return self.connection_class(**self.values | endpoint)
        except TypeError as error:
            raise ConnectionFailedError(f"a setting for Redis at {address} is not known: {error}") from None


class Route(Protocol):
    """Finds the server to connect to. It can be pickled, and serves all threads."""

    kind: str
    """What is there, for messages."""
    address: str
    """Where, for messages: without user and password."""
    part: str
    """The part of it that is used, for messages; empty for all of it."""
    settings: Settings
    retries: int
    """How often a call is repeated that finds no master."""
    secrets: list[str]
    """What no message may show."""

    def beside(self, tag: str, /) -> Route:
        """The route to the keys with another hash tag; this one where all keys are together."""

    def connect(self) -> Any:
        """A connection to the master, which connects when it is first used.

        :raises redis.exceptions.ConnectionError: if no master is known now.
        """

    def lost(self) -> None:
        """A connection broke, or its server is not the master: the next is to go where the master is then."""

    def moved(self, master: Endpoint, /) -> bool:
        """A server named another as the master. False if this route has but one server."""


class FixedRoute:
    """One server, or whatever is behind its address."""

    kind = "Redis"
    part = ""
    retries = 2

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.secrets = _secrets(settings.values)
        values = settings.values
        database = values.get("db") or 0
        self.address = (
            f"unix://{values['path']}?db={database}"
            if values.get("path")
            else f"{settings.scheme}://{values.get('host', 'localhost')}:{values.get('port', 6379)}/{database}"
        )

    def beside(self, _: str, /) -> FixedRoute:
        """The server has all keys."""
        return self

    def connect(self) -> Any:
        """A connection to the server."""
        return self.settings.open(self.address)

    def lost(self) -> None:
        """The server stays the same."""

    def moved(self, _: Endpoint, /) -> bool:
        """It has no other."""
        return False


class SentinelRoute:
    """The server that Sentinel names as a service's master. Each connection asks, as the master may change."""

    kind = "Redis behind Sentinel"
    part = ""
    retries = 4

    def __init__(
        self, sentinels: tuple[Endpoint, ...], service: str, settings: Settings, sentinel_login: dict[str, str]
    ) -> None:
        self._sentinels, self._service, self.settings, self._login = sentinels, service, settings, sentinel_login
        self.secrets = [*_secrets(settings.values), *_secrets(sentinel_login)]
        database = settings.values.get("db") or 0
        self.address = f"{settings.scheme}+sentinel://{_listed(sentinels)}/{service}/{database}"

    def beside(self, _: str, /) -> SentinelRoute:
        """The master has all keys."""
        return self

    def connect(self) -> Any:
        """A connection to the master, which is refused if it is a replica by then."""
        host, port = self._master()
        return self.settings.open(self.address, host=host, port=port, redis_connect_func=_check_master)

    def lost(self) -> None:
        """The next connection asks Sentinel anyhow."""

    def moved(self, _: Endpoint, /) -> bool:
        """Its servers are not a cluster's."""
        return False

    def _master(self) -> Endpoint:
        of_sockets = {
            name: value for name, value in self.settings.values.items() if name.startswith(("socket_", "ssl_"))
        }
        options = of_sockets | self._login | {"ssl": self.settings.scheme == "rediss", "retry": Retry(NoBackoff(), 0)}
        sentinel = Sentinel(self._sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        try:
            host, port = sentinel.discover_master(self._service)  # type: ignore[no-untyped-call]
            return host, int(port)
        except redis.sentinel.MasterNotFoundError:
            # Its text does not say why.
            reasons = dict.fromkeys(filter(None, map(_why_not_used, sentinel.sentinels)))
            why = "; ".join(reasons) or "Sentinel knows none, or holds it for down"
            raise NoMasterError(f"no master of the service {self._service!r} was found: {why}") from None
        finally:
            for client in sentinel.sentinels:
                client.close()


class ClusterTopology:
    """Which master has which slot, as redis-py's cluster client learns it from any node. It is shared by the routes."""

    def __init__(
        self, seeds: tuple[Endpoint, ...], settings: Settings, remap: Callable[[Endpoint], Endpoint] | None = None
    ) -> None:
        if settings.values.get("db"):
            raise ConnectionFailedError(f"database {settings.values['db']}: a cluster has only the database 0")
        self.seeds, self.settings, self._remap = seeds, settings, remap
        self.address = f"{settings.scheme}://{_listed(seeds)}?cluster=true"
        self._begin()

    def _begin(self) -> None:
        """Know nothing yet: a lock and connections of a parent process are not this one's."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._is_stale = True
        self._moved: dict[int, Endpoint] = {}
        self._nodes: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ClusterTopology, (self.seeds, self.settings, self._remap)

    def master(self, slot: int) -> Endpoint:
        """The master of a slot.

        :raises NoMasterError: if the slot has none, or no node of the cluster can be reached.
        :raises ConnectionFailedError: if the servers are no cluster.
        """
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            if self._is_stale:
                self._look_up()
            if slot in self._moved:
                return self._moved[slot]
            try:
                node: Any = self._nodes.get_node_from_slot(slot)
            except SlotNotCoveredError:
                self._is_stale = True
                raise NoMasterError("it has no master") from None
            return node.host, int(node.port)

    def mark_stale(self) -> None:
        """Look up the masters when one is needed next."""
        self._is_stale = True

    def moved(self, slot: int, master: Endpoint) -> None:
        """A node named the master of a slot, which is newer than what others may say."""
        with self._lock:
            self._moved[slot] = master if self._remap is None else self._remap(master)

    def _look_up(self) -> None:
        try:
            if self._nodes is None:
                self._nodes = self._new_manager()
            else:
                self._nodes.initialize()
        except RedisClusterException as error:
            # The nodes that were known may all have gone: the next attempt begins with the seeds.
            self._nodes = None
            raise self._unreachable(error) from None
        except IndexError:  # It takes a master for granted.
            self._nodes = None
            raise NoMasterError("no node of the cluster has a slot yet") from None
        self._moved, self._is_stale = {}, False

    def _new_manager(self) -> Any:
        """What redis-py's cluster client finds masters with. Its other half sends commands, which is not needed."""
        node: Any = ClusterNode
        return NodesManager(
            startup_nodes=[node(host, port) for host, port in self.seeds],
            from_url=True,
            require_full_coverage=False,
            address_remap=self._remap,
            connection_class=self.settings.connection_class,
            **self.settings.values,
        )

    def _unreachable(self, error: RedisClusterException) -> Exception:
        cause = error.__cause__
        if isinstance(cause, redis.exceptions.AuthenticationError):
            return cause
        reason = str(cause.__context__ or cause) if cause is not None else str(error)
        if any(text in reason for text in _NOT_OF_A_CLUSTER):
            return ConnectionFailedError(f"Redis at {self.address} is not a cluster: leave out ?cluster=true")
        return NoMasterError(f"no node of the cluster can be reached: {reason}")


class ClusterRoute:
    """The master of one slot of a cluster."""

    kind = "Redis Cluster"
    retries = 4

    def __init__(self, topology: ClusterTopology, slot: int) -> None:
        self._topology, self._slot = topology, slot
        self.settings, self.address, self.part = topology.settings, topology.address, f"slot {slot}"
        self.secrets = _secrets(topology.settings.values)

    def beside(self, tag: str, /) -> ClusterRoute:
        """The route to the tag's slot, which knows what this one learns of the cluster."""
        return ClusterRoute(self._topology, slot_of(tag))

    def connect(self) -> Any:
        """A connection to the slot's master."""
        host, port = self._topology.master(self._slot)
        return self.settings.open(self.address, host=host, port=port)

    def lost(self) -> None:
        """A replica may take over, or the slot may be elsewhere."""
        self._topology.mark_stale()

    def moved(self, master: Endpoint, /) -> bool:
        """The slot is there now."""
        self._topology.moved(self._slot, master)
        return True


def slot_of(tag: str) -> int:
    """The slot of the keys with a hash tag."""
    return int(key_slot(tag.encode()))


def _check_master(connection: Any) -> None:
    """Finish a connection, and refuse it if its server is a replica: Sentinel may not have noticed yet."""
    connection.on_connect()
    connection.send_command("ROLE")
    try:
        role = connection.read_response()[0]
    except redis.exceptions.NoPermissionError:  # Then only writes find out.
        return
    if role != b"master":
        raise NoMasterError(f"{connection.host}:{connection.port}, which Sentinel names, is not a master")


def _why_not_used(client: Any) -> str:
    """Why a server does not answer; empty if it does."""
    try:
        client.ping()
    except redis.exceptions.RedisError as error:
        return str(error)
    return ""


def _secrets(values: dict[str, Any]) -> list[str]:
    return [str(values[name]) for name in ("password",) if values.get(name)]


def _listed(endpoints: tuple[Endpoint, ...]) -> str:
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in endpoints)
