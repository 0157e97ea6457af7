"""The nodes of a deployment, from the reports of their processes: what each has applied, and how far it is behind."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from quorin.engine.ops import presence
from quorin.engine.ops.unread import unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from quorin.engine.backend import Backend, Bounds, Log
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


@dataclass(frozen=True, slots=True)
class Replica:
    """A node's copy of a schema's rows: its version and position, and how long ago it was known to be up to date
    (seconds; None if that is unknown).
    """

    schema_name: str
    version: int
    position: int
    lag_seconds: float | None
    behind: Behind = Behind()


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

    @property
    def lag_seconds(self) -> float | None:
        """The largest lag of its replicas; None if one is unknown."""
        lags = [replica.lag_seconds for replica in self.replicas]
        return None if None in lags or not lags else max(lag for lag in lags if lag is not None)

    def position_of(self, schema_name: str) -> int:
        """The position of its replica of a schema; 0 if it has none."""
        return next((replica.position for replica in self.replicas if replica.schema_name == schema_name), 0)

    def version_of(self, schema_name: str) -> int:
        """The version of its replica of a schema; 0 if it has none."""
        return next((replica.version for replica in self.replicas if replica.schema_name == schema_name), 0)

    @property
    def behind(self) -> Behind:
        """The sum over its replicas."""
        parts = [replica.behind for replica in self.replicas]
        return Behind(
            sum(part.entries for part in parts),
            sum(part.rows for part in parts),
            sum(part.bytes for part in parts),
            all(part.is_exact for part in parts),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "lag_seconds": self.lag_seconds, "behind": asdict(self.behind)}


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
        )
        for node, of_node in by_node.items()
    ]
    return sorted(nodes, key=lambda node: (node.silent_seconds, node.node))


def observed_nodes(
    backend: Backend, log: Log, *, node_timeout_seconds: float = DEFAULT_NODE_TIMEOUT_SECONDS
) -> list[NodeReport]:
    """The nodes of a deployment, with what each is behind by.

    :raises ConnectionFailedError: if the control plane cannot be reached.
    """
    bounds = log.bounds()
    nodes = nodes_of(presence.reports(backend.control), node_timeout_seconds=node_timeout_seconds)
    return with_behind(nodes, log, bounds)


def with_behind(nodes: Iterable[NodeReport], log: Log, bounds: Bounds) -> list[NodeReport]:
    """Nodes with what each is behind by, counted in the log, whose bounds are ``bounds``."""
    nodes = list(nodes)
    wanted = {(replica.schema_name, replica.position) for node in nodes for replica in node.replicas}
    found = unread(log, bounds, wanted, max_entries=_MAX_ENTRIES, max_bytes=_MAX_BYTES)
    # Trimmed entries are not counted.
    behind = {
        (name, position): Behind(one.entries, one.rows, one.bytes, is_exact=one.is_all and position >= bounds.trimmed)
        for (name, position), one in found.items()
    }
    return [
        replace(
            node,
            replicas=tuple(replace(one, behind=behind[one.schema_name, one.position]) for one in node.replicas),
        )
        for node in nodes
    ]


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
                None if lag is None else lag + report.age_seconds,
            )
            known = furthest.get(name)
            if known is None or replica.position > known.position:
                furthest[name] = replica
    return [furthest[name] for name in sorted(furthest)]
