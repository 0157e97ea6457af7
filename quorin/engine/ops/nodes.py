"""The nodes of a deployment, from the reports of their processes: what each has applied, and how far it is behind."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from quorin.engine.log.token import Token
from quorin.engine.ops import presence
from quorin.engine.ops.presence import WHOLE
from quorin.engine.ops.unread import unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from quorin.engine.backend import Backend, Bounds, Log
    from quorin.engine.format.partition import Partitioning
    from quorin.engine.ops.presence import Report

DEFAULT_NODE_TIMEOUT_SECONDS = 600.0
_LOOK_SECONDS = 0.02
_MAX_ENTRIES, _MAX_BYTES = 4096, 16 << 20
"""How much of the log is read to count what a node lacks; beyond that the counts are lower bounds."""


@dataclass(frozen=True, slots=True)
class Behind:
    """What the log holds and a replica does not: entries, rows, bytes. ``is_exact`` is False for lower bounds."""

    entries: int = 0
    rows: int = 0
    bytes: int = 0
    is_exact: bool = True


_UNKNOWN = Behind(is_exact=False)


@dataclass(frozen=True, slots=True)
class PartReplica:
    """One partition of a replica: its position, and how long ago it was known to be up to date (seconds; None if that
    is unknown).
    """

    partition: int
    position: int
    lag_seconds: float | None
    behind: Behind = Behind()


@dataclass(frozen=True, slots=True)
class Replica:
    """A node's copy of a schema's rows: its version and position, and how long ago it was known to be up to date
    (seconds; None if that is unknown). With several partitions it has ``parts``; ``position`` is the highest of theirs.
    """

    schema_name: str
    version: int
    position: int
    lag_seconds: float | None
    behind: Behind = Behind()
    parts: tuple[PartReplica, ...] = ()

    def position_in(self, partition: int | None) -> int:
        """The position in the log of a partition; ``None`` is the only one."""
        if partition is None:
            return self.position
        return next((part.position for part in self.parts if part.partition == partition), 0)

    @property
    def positions(self) -> dict[int | None, int]:
        """The position in each log."""
        return {part.partition: part.position for part in self.parts} if self.parts else {None: self.position}

    def with_behind(self, found: Mapping[int | None, Behind]) -> Replica:
        """What it is behind by in each log."""
        parts = tuple(replace(part, behind=found[part.partition]) for part in self.parts)
        return replace(self, behind=_sum(found.values()), parts=parts)


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A node: its name, the hosts and roles of the processes that apply on it, and its replicas by schema.

    It is alive if one of them reported within the node timeout.
    """

    node: str
    hosts: tuple[str, ...]
    roles: tuple[str, ...]
    silent_seconds: float
    is_alive: bool
    replicas: tuple[Replica, ...]
    partitions: Partitioning = WHOLE

    @property
    def lag_seconds(self) -> float | None:
        """The largest lag of its replicas; None if one is unknown."""
        lags = [replica.lag_seconds for replica in self.replicas]
        return None if None in lags or not lags else max(lag for lag in lags if lag is not None)

    def position_of(self, schema_name: str, partition: int | None = None) -> int:
        """The position of its replica of a schema, in the log of a partition or the only one; 0 if it has none."""
        found = (one.position_in(partition) for one in self.replicas if one.schema_name == schema_name)
        return next(found, 0)

    def lacks(self, schema_name: str, positions: Mapping[int | None, int]) -> bool:
        """Whether it holds a partition whose log it has not applied up to a position; the partition None is all."""
        return any(
            self.position_of(schema_name, partition) < position
            for partition, position in positions.items()
            if partition is None or partition in self.partitions.held
        )

    def version_of(self, schema_name: str) -> int:
        """The version of its replica of a schema; 0 if it has none."""
        return next((replica.version for replica in self.replicas if replica.schema_name == schema_name), 0)

    @property
    def behind(self) -> Behind:
        """The sum over its replicas."""
        return _sum(replica.behind for replica in self.replicas)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        partitions = {"count": self.partitions.count, "held": sorted(self.partitions.held)}
        return {
            **asdict(self),
            "replicas": [{"schema": one.pop("schema_name"), **one} for one in map(asdict, self.replicas)],
            "partitions": partitions,
            "lag_seconds": self.lag_seconds,
            "behind": asdict(self.behind),
        }


def nodes_of(
    reports: Iterable[Report], *, node_timeout_seconds: float = DEFAULT_NODE_TIMEOUT_SECONDS
) -> list[NodeReport]:
    """The nodes that processes report for, the most recent first; without what they are behind by.

    Of a schema that several processes of a node report, the furthest position counts: one of them has died, or has
    handed the segment over.
    """
    by_node: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        by_node[report.node].append(report)
    nodes = [
        NodeReport(
            node,
            tuple(sorted({report.process.host for report in of_node})),
            tuple(sorted({report.role for report in of_node})),
            min(report.age_seconds for report in of_node),
            any(report.age_seconds <= node_timeout_seconds for report in of_node),
            tuple(_replicas(of_node)),
            of_node[0].partitions,
        )
        for node, of_node in by_node.items()
    ]
    return sorted(nodes, key=lambda node: (node.silent_seconds, node.node))


def observed_nodes(
    backend: Backend, logs: Sequence[Log], *, node_timeout_seconds: float = DEFAULT_NODE_TIMEOUT_SECONDS
) -> list[NodeReport]:
    """The nodes of a deployment, with what each is behind by. ``logs``: one a partition.

    :raises ConnectionFailedError: if the control plane cannot be reached.
    """
    bounds = [log.bounds() for log in logs]
    nodes = nodes_of(presence.reports(backend.control), node_timeout_seconds=node_timeout_seconds)
    return with_behind(nodes, logs, bounds)


def with_behind(nodes: Iterable[NodeReport], logs: Sequence[Log], bounds: Sequence[Bounds]) -> list[NodeReport]:
    """Nodes with what each is behind by, counted in the logs, whose bounds are ``bounds``."""
    nodes = list(nodes)
    found: dict[tuple[str, int | None, int], Behind] = {}
    for number, (log, ends) in enumerate(zip(logs, bounds, strict=True)):
        partition = number if len(logs) > 1 else None
        # A process of an earlier release reports no partitions.
        replicas = [one for node in nodes for one in node.replicas if partition in one.positions]
        wanted = {(one.schema_name, one.position_in(partition)) for one in replicas}
        counts = unread(log, ends, wanted, max_entries=_MAX_ENTRIES, max_bytes=_MAX_BYTES)
        for (name, position), one in counts.items():
            # Trimmed entries are not counted.
            is_exact = one.is_all and position >= ends.trimmed
            found[name, partition, position] = Behind(one.entries, one.rows, one.bytes, is_exact)

    def counted(one: Replica) -> Replica:
        of_logs = {p: found.get((one.schema_name, p, at), _UNKNOWN) for p, at in one.positions.items()}
        return one.with_behind(of_logs)

    return [replace(node, replicas=tuple(counted(one) for one in node.replicas)) for node in nodes]


def positions_by_partition(logs: Sequence[Log], position: int) -> dict[int | None, int]:
    """A position of the only log, or those of a token by partition.

    :raises TokenError: with several partitions, for a position that is no token.
    """
    if len(logs) == 1:
        return {None: int(position)}
    partitions = {log.identity(): partition for partition, log in enumerate(logs)}
    return {partitions[identity]: at for identity, at in Token.of(position).parts if identity in partitions}


def late_nodes(
    backend: Backend,
    is_late: Callable[[NodeReport], bool],
    *,
    timeout_seconds: float,
    node_timeout_seconds: float = DEFAULT_NODE_TIMEOUT_SECONDS,
) -> list[str]:
    """Wait until no live node is late; the names of those that still are after the timeout. Nodes report about once a
    second.

    :raises ConnectionFailedError: if the control plane cannot be reached.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        nodes = nodes_of(presence.reports(backend.control), node_timeout_seconds=node_timeout_seconds)
        late = [node.node for node in nodes if node.is_alive and is_late(node)]
        if not late or time.monotonic() >= deadline:
            return late
        time.sleep(_LOOK_SECONDS)


def _replicas(reports: list[Report]) -> list[Replica]:
    furthest: dict[str, Replica] = {}
    for report in reports:
        for name, entry in report.schemas.items():
            lag = entry.get("lag_seconds")
            replica = Replica(
                name,
                int(entry.get("version", 0)),
                int(entry["position"]),
                _aged(lag, report),
                parts=tuple(
                    PartReplica(int(number), int(part["position"]), _aged(part["lag_seconds"], report))
                    for number, part in entry.get("partitions", {}).items()
                ),
            )
            known = furthest.get(name)
            if known is None or replica.position > known.position:
                furthest[name] = replica
    return [furthest[name] for name in sorted(furthest)]


def _aged(lag_seconds: float | None, report: Report) -> float | None:
    """A lag as of now that was reported a while ago."""
    return None if lag_seconds is None else lag_seconds + report.age_seconds


def _sum(parts: Iterable[Behind]) -> Behind:
    parts = list(parts)
    return Behind(
        sum(part.entries for part in parts),
        sum(part.rows for part in parts),
        sum(part.bytes for part in parts),
        all(part.is_exact for part in parts),
    )
