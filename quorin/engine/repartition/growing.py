"""Grow a deployment to twice as many partitions, and wait for its nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.ops import presence
from quorin.engine.ops.nodes import nodes_of
from quorin.engine.repartition import run
from quorin.errors import NotYetRepartitionedError

if TYPE_CHECKING:
    from quorin.engine.backend import Backend
    from quorin.engine.format.growth import Growth

DEFAULT_TIMEOUT_SECONDS = 60.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class RepartitionResult:
    """A growth that is done. ``closed_entries`` is how many entries the former logs still have, which nodes apply to
    their ends; every position at or below ``closed_position`` is of one of them. ``nodes`` are the live nodes, and
    ``late_nodes`` those of them that have not carried their rows over yet.
    """

    former_partitions: int
    partitions: int
    closed_entries: int
    closed_position: int
    nodes: tuple[str, ...]
    late_nodes: tuple[str, ...]
    elapsed_seconds: float


def repartition(
    backend: Backend,
    partitions: int,
    *,
    stream_keys: Sequence[str] = (DEFAULT_STREAM_KEY,),
    wait_for: Literal["log", "nodes"] = "nodes",
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    progress: Callable[[int, int], None] | None = None,
) -> RepartitionResult:
    """Grow a deployment to ``partitions``, twice as many as it has. Reads and writes go on.

    The log of each partition is closed, and two new ones follow it; no row is moved. Writes wait some milliseconds
    meanwhile. Each node applies the closed logs to their ends, carries its rows over to a segment of the new number,
    and follows the new logs. With ``wait_for="nodes"`` the call returns when all live nodes have done so, which takes
    some seconds.

    If this process is killed, the next call goes on, or :func:`abort_repartition` undoes it; a producer that finds a
    log closed for a second finishes it as well, and on Redis a consumer within some seconds. Doing again what is done
    only waits for the nodes.

    ``stream_keys`` are the names of all logs of the deployment. ``progress`` is called with what is done and what there
    is in all: steps, then nodes.

    :raises PartitionCountError: if it is not twice the present number, or more than 256.
    :raises RepartitionConflictError: if rows are being replaced, or a growth is being undone.
    :raises NotYetRepartitionedError: if live nodes are not there in time; the deployment has the new number.
    :raises ConnectionFailedError: if the control plane or a log cannot be reached.
    """
    started = time.monotonic()
    growth = _grown(backend, partitions, stream_keys, progress)
    former = next((one for one in growth.former if 2 * one.count == partitions), None)
    if former is None:  # Another process has ended it.
        raise run.was_ended(growth, partitions)
    logs = [backend.log(key, number, of=former.count) for key in growth.stream_keys for number in range(former.count)]
    names, late = _late(backend, partitions)
    while wait_for == "nodes" and late and time.monotonic() - started < timeout_seconds:
        if progress is not None:
            progress(len(names) - len(late), len(names))
        time.sleep(_LOOK_SECONDS)
        names, late = _late(backend, partitions)
    if wait_for == "nodes" and late:
        raise NotYetRepartitionedError(
            f"the deployment has {partitions} partitions, and these nodes do not after {timeout_seconds:g} s: "
            f"{', '.join(late)}; they get there when they have applied the closed logs"
        )
    return RepartitionResult(
        former.count,
        partitions,
        sum(log.sizes()[0] for log in logs),
        former.end,
        tuple(names),
        tuple(late),
        time.monotonic() - started,
    )


def _grown(
    backend: Backend, partitions: int, stream_keys: Sequence[str], progress: Callable[[int, int], None] | None
) -> Growth:
    """The growth, done. It is begun again if the control plane has lost it: a replica that lacked it took over."""
    while True:
        begun = run.begin(backend, partitions, stream_keys)
        growth = run.go_on(backend, progress)
        if growth.number >= begun.number:
            return growth


def abort_repartition(backend: Backend) -> int | None:
    """Undo a growth that is under way, whoever began it: the logs take appends again, and nothing was lost.

    Returns the number of partitions that the deployment keeps; None if no growth is under way, as it may be done.

    :raises ConnectionFailedError: if the control plane or a log cannot be reached; calling it again goes on.
    """
    growth = run.end(backend)
    return None if growth is None else growth.count


def _late(backend: Backend, partitions: int) -> tuple[list[str], list[str]]:
    """The live nodes, and those that have fewer partitions."""
    nodes = [node for node in nodes_of(presence.reports(backend.control)) if node.is_alive]
    return [node.node for node in nodes], [node.node for node in nodes if node.partitions.count < partitions]
