"""The control plane on Redis: the hashes of one namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.backend import growth_keys, keys, load_keys, partition_keys
from quorin.engine.backend.protocols import Applied, Beginning, Beginnings, in_order
from quorin.engine.backend.redis_connection import RedisServer, texts

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class RedisControlPlane:
    """The hashes of one namespace, and its identity."""

    def __init__(self, server: RedisServer, namespace: str) -> None:
        self._server = server
        self._legacy_current = keys.legacy_current_key(namespace)
        self._schemas = keys.schemas_key(namespace)
        self._checks = keys.checks_key(namespace)
        self._of_schemas = [self._schemas, keys.dropped_key(namespace), keys.beginnings_key(namespace), self._checks]
        self._processes = keys.processes_key(namespace)
        self._heartbeats = keys.heartbeats_key(namespace)
        self._clock = keys.clock_key(namespace)
        self._replicas = keys.replicas_key(namespace)
        self._identity = keys.identity_key(namespace)
        self._partitions = partition_keys.partitions_key(namespace)
        self._growth = growth_keys.growth_key(namespace)
        self._namespace = namespace
        self._loads = load_keys.loads_key(namespace)

    def legacy_currents(self) -> dict[str, str]:
        """What earlier releases stored."""
        return texts(self._server.call("HGETALL", self._legacy_current))

    def identity(self, *, remembered: int | None = None) -> int:
        """A random number, stored when it is first read."""
        self._server.call("SET", self._identity, remembered or keys.fresh_identity(), "NX")
        return int(self._server.call("GET", self._identity))

    def put_schema(self, schema_name: str, json: str, *, beginning: Beginnings = None) -> None:
        """Store a schema in one script with its beginning."""
        self._server.run(
            keys.LUA_PUT_SCHEMA, self._of_schemas, [schema_name, json, "always", "", _beginning_text(beginning)]
        )

    def swap_schema(self, schema_name: str, json: str, *, expected: str | None, beginning: Beginnings = None) -> bool:
        """Compare and set, in one script with the beginning."""
        words = [schema_name, json, "if", expected or "", _beginning_text(beginning)]
        return bool(self._server.run(keys.LUA_PUT_SCHEMA, self._of_schemas, words))

    def restore_schema(self, schema_name: str, json: str, *, beginning: Beginnings) -> bool:
        """Compare and set, in one script."""
        words = [schema_name, json, "restore", "", _beginning_text(beginning)]
        return bool(self._server.run(keys.LUA_PUT_SCHEMA, self._of_schemas, words))

    def schemas(self) -> dict[str, str]:
        """The schemas' JSON by name."""
        return texts(self._server.call("HGETALL", self._schemas))

    def drop_schema(self, schema_name: str, *, expected: str | None = None) -> bool:
        """Compare, delete and record the name, in one script."""
        words = [schema_name, "always" if expected is None else "if", expected or ""]
        return bool(self._server.run(keys.LUA_DROP_SCHEMA, self._of_schemas, words))

    def dropped_schemas(self) -> set[str]:
        """The names of dropped schemas."""
        return {name.decode() for name in self._server.call("HKEYS", self._of_schemas[1])}

    def beginnings(self, partition: int = 0) -> dict[str, Beginning]:
        """Where schemas begin in the log of a partition, by name."""
        found = texts(self._server.call("HGETALL", self._of_schemas[2]))
        parts = {name: partition_keys.parse_beginning(text, partition) for name, text in found.items()}
        return {name: Beginning(*part) for name, part in parts.items() if part is not None}

    def partition_count(self) -> int | None:
        """What is stored."""
        stored = self._server.call("GET", self._partitions)
        return None if stored is None else int(stored)

    def settle_partitions(self, count: int, *, stream_keys: Collection[str] = ()) -> int:
        """One script."""
        streams = [keys.log_keys(self._namespace, name).stream for name in {keys.DEFAULT_STREAM_KEY, *stream_keys}]
        return int(self._server.run(partition_keys.LUA_SETTLE, [self._partitions, self._schemas, *streams], [count]))

    def growth(self) -> str | None:
        """What is stored."""
        stored = self._server.call("GET", self._growth)
        return None if stored is None else stored.decode()

    def swap_growth(
        self, json: str, *, expected: str | None, count: int | None = None, loads: Mapping[str, str] | None = None
    ) -> bool:
        """Compare and set, in one script with the number of partitions."""
        words = [json, expected or "", "" if count is None else count, "" if loads is None else len(loads)]
        words += [word for load in (loads or {}).items() for word in load]
        names = [self._growth, self._partitions, self._loads]
        return bool(self._server.run(growth_keys.LUA_SWAP_GROWTH, names, words))

    def put_checks(self, schema_name: str, json: str | None) -> None:
        """Set or remove the checks."""
        words = (schema_name,) if json is None else (schema_name, json)
        self._server.call("HDEL" if json is None else "HSET", self._checks, *words)

    def checks(self) -> dict[str, str]:
        """The checks' JSON by name."""
        return texts(self._server.call("HGETALL", self._checks))

    def swap_load(
        self, schema_name: str, json: str | None, *, expected: str | None, beside: tuple[str | None] | None = None
    ) -> bool:
        """Compare and set, in one script with the time."""
        words = [schema_name, load_keys.load_heartbeat(schema_name), json or "", expected or ""]
        words += [] if beside is None else [beside[0] or ""]
        names = [self._loads, self._heartbeats, self._clock, self._growth]
        return bool(self._server.run(load_keys.LUA_SWAP_LOAD, names, words))

    def loads(self) -> dict[str, tuple[str, float]]:
        """The loads, each with the time since it was stored."""
        found = texts(self._server.call("HGETALL", self._loads))
        silences = self.silences() if found else {}
        return {name: (text, silences.get(load_keys.load_heartbeat(name), 0.0)) for name, text in found.items()}

    def announce(
        self, process: str, report: str, *, node: str = "", positions: Mapping[str, int] | None = None
    ) -> None:
        """Store a report and positions in one script."""
        words = [process, report]
        for name, position in (positions or {}).items():
            words += [f"{node} {name}", str(position)]
        self._server.run(keys.LUA_ANNOUNCE, [self._processes, self._heartbeats, self._clock, self._replicas], words)

    def hold(self, node: str, schema_name: str, position: int) -> None:
        """Store a position as if it was announced."""
        words = [f"{node} {schema_name}", str(position)]
        self._server.run(keys.LUA_HOLD, [self._heartbeats, self._clock, self._replicas], words)

    def processes(self) -> dict[str, str]:
        """The reports by process."""
        return texts(self._server.call("HGETALL", self._processes))

    def replicas(self) -> dict[tuple[str, str], Applied]:
        """The positions, each with the time of its report."""
        silences, found = self.silences(), {}
        for key, position in texts(self._server.call("HGETALL", self._replicas)).items():
            node, _, name = key.partition(" ")
            found[node, name] = Applied(int(position), silences.get(key, 0.0))
        return found

    def forget_replica(self, node: str, schema_name: str) -> None:
        """Remove the position and its time."""
        for key in (self._replicas, self._heartbeats):
            self._server.call("HDEL", key, f"{node} {schema_name}")

    def silences(self) -> dict[str, float]:
        """The server's time minus that of each report."""
        *times, _, now = self._server.run(keys.LUA_SILENCES, [self._heartbeats, self._clock], [])
        return {name: (int(now) - int(at)) / 1000 for name, at in texts(times).items()}

    def withdraw(self, process: str) -> bool:
        """Remove a process's report."""
        self._server.call("HDEL", self._heartbeats, process)
        return bool(self._server.call("HDEL", self._processes, process))


def _beginning_text(beginning: Beginnings) -> str:
    return partition_keys.beginnings_text([(one.log_identity, one.position) for one in in_order(beginning)])
