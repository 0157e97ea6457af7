"""Which nodes hold which partitions, and at which URLs they serve: published beside the segments, read without Redis.

The process that applies the log on a node reads the reports of all nodes once a second and writes what they say to the
file ``quorin-node-<identity>.holders``, JSON, renamed into place. Readers of the node look there, so a read that needs
another node needs no control plane. While that is away, the file stays as it was.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quorin.engine.format.partition import Partitioning
from quorin.engine.memory.access import Access, replace_text
from quorin.engine.memory.addresses import addresses

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from quorin.engine.backend import ControlPlane
    from quorin.engine.memory.node import Node

FORMAT = 1
_PURPOSE = "holders"
FRESH_SECONDS = 10.0
"""A node is ready if it reported, and was known to be up to date, within this time."""
_MAX_SILENT_SECONDS = 600.0
"""A node that was silent for longer is no holder."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that holds a partition: its name, the URLs of its servers, and whether its rows are up to date."""

    node: str
    urls: tuple[str, ...]
    is_ready: bool


class Holders:
    """The nodes of a deployment, each with the partitions that it holds, and the number of partitions that the newest
    report speaks of. While a deployment grows, nodes speak of different numbers.
    """

    def __init__(self, count: int = 1, nodes: Sequence[tuple[Holder, Partitioning]] = ()) -> None:
        self.count = count
        self._nodes = nodes
        self._at: dict[int, Mapping[int, tuple[Holder, ...]]] = {}

    def at(self, count: int) -> Mapping[int, tuple[Holder, ...]]:
        """The nodes that hold each of ``count`` partitions whole."""
        found = self._at.get(count)
        if found is None:
            by_partition: dict[int, list[Holder]] = defaultdict(list)
            for holder, own in self._nodes:
                for partition in _whole(own, count):
                    by_partition[partition].append(holder)
            found = {partition: tuple(nodes) for partition, nodes in sorted(by_partition.items())}
            self._at[count] = found
        return found


def report_of(node: Node, count: int, held: Collection[int]) -> dict[str, Any]:
    """What a report says of a node's part of ``count`` partitions: ``partitions`` and ``urls``."""
    return {"partitions": {"count": count, "held": sorted(held)}, "urls": list(addresses(node))}


def publish_holders(control: ControlPlane, node: Node) -> None:
    """Write which nodes hold what, as their reports say, unless the file says so already. Without several partitions
    there is no file.

    :raises ConnectionFailedError: if the control plane cannot be reached.
    :raises SharedMemoryError: if the file cannot be written.
    """
    silences = control.silences()
    entries = [(json.loads(text), silences.get(name)) for name, text in control.processes().items()]
    found = _published(entries)
    path = node.beside(_PURPOSE)
    if found is None:
        path.unlink(missing_ok=True)
        return
    text = json.dumps(found, sort_keys=True)
    with suppress(OSError):
        if path.read_text() == text:
            return
    replace_text(path, text, Access.of(node.beside("")))


def holders(node: Node, count: int | None = None) -> Mapping[int, tuple[Holder, ...]]:
    """The nodes that hold each of ``count`` partitions, by default of those of the newest report; this node included,
    and empty if none are known, as on a new node.
    """
    known = known_holders(node)
    return known.at(known.count if count is None else count)


def known_holders(node: Node) -> Holders:
    """All that is known of who holds what."""
    return read_holders(holders_path(node))


def holders_path(node: Node) -> Path:
    """Where a node's file is, if there is one."""
    return node.beside(_PURPOSE)


def read_holders(path: Path) -> Holders:
    """What a file says. It is read when it has changed; threads may call this."""
    try:
        status = path.stat()
        signature = status.st_ino, status.st_mtime_ns, status.st_size
        cached = _cached.get(path)
        if cached is not None and cached[0] == signature:
            return cached[1]
        found = _parsed(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return Holders()
    _cached[path] = signature, found
    return found


def _published(entries: Iterable[tuple[dict[str, Any], float | None]]) -> dict[str, Any] | None:
    """What to write for reports, each with the time since it was made; None if no node has partitions.

    A node has what its last report says. Of a schema that several of its processes report, the smallest lag counts.
    """
    by_node: dict[str, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
    for entry, silent_seconds in entries:
        is_known = silent_seconds is not None and silent_seconds <= _MAX_SILENT_SECONDS
        if is_known and "partitions" in entry:
            by_node[entry["node"]].append((silent_seconds or 0.0, entry))
    nodes, newest = [], (math.inf, 1)
    for name, reports in sorted(by_node.items()):
        silent_seconds, last = min(reports, key=lambda report: report[0])
        newest = min(newest, (silent_seconds, last["partitions"]["count"]))
        lag = max(_lags(reports).values(), default=math.inf)
        own = {"count": last["partitions"]["count"], "held": sorted(last["partitions"]["held"])}
        nodes.append({"node": name, **own, "urls": sorted(last["urls"]), "ready": lag <= FRESH_SECONDS})
    if all(node["count"] == 1 for node in nodes):
        return None
    return {"format": FORMAT, "count": newest[1], "nodes": nodes}


def _lags(reports: Iterable[tuple[float, dict[str, Any]]]) -> dict[str, float]:
    """By schema, how long ago its rows were known to be up to date, in seconds; infinity if never."""
    lags: dict[str, float] = {}
    for silent_seconds, report in reports:
        for name, schema in report["schemas"].items():
            lag = schema.get("lag_seconds")
            lags[name] = min(lags.get(name, math.inf), math.inf if lag is None else lag + silent_seconds)
    return lags


def _parsed(text: bytes) -> Holders:
    found = json.loads(text)
    if found["format"] != FORMAT:
        return Holders()
    nodes = [
        (Holder(node["node"], tuple(node["urls"]), node["ready"]), Partitioning(node["count"], frozenset(node["held"])))
        for node in found["nodes"]
    ]
    return Holders(found["count"], nodes)


def _whole(own: Partitioning, count: int) -> frozenset[int]:
    """The partitions, of ``count``, all of whose rows are in those of a node."""
    if count >= own.count:
        return own.at(count).held
    times = own.count // count
    return frozenset(one for one in own.at(count).held if own.held.issuperset(range(one * times, (one + 1) * times)))


_cached: dict[Path, tuple[tuple[int, int, int], Holders]] = {}
