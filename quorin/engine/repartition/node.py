"""How a node gets from one number of partitions to the next: it applies the closed logs to their end, then it flips.

A node without rows begins with the number that the deployment was made with, and comes to the present one as others
do. So there is one way, whether a node was there all the time, was away, or is new.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quorin.engine.format.growth import Closed, Growth, State
from quorin.engine.memory import file as mapping
from quorin.engine.memory.growth import repartition
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from quorin.engine.backend import Backend
    from quorin.engine.format.growth import Former
    from quorin.engine.format.partition import Partitioning
    from quorin.engine.memory.node import Node
    from quorin.engine.memory.segment import Segment

_log = get_logger(__name__)


def node_count(backend: Backend, node: Node, shm_dir: Path) -> int:
    """The number of partitions that this node's segments have: the lowest, if a flip was interrupted between them."""
    count, growth = backend.partitions(), Growth.parse(backend.control.growth())
    if not growth.former:
        return count
    counts = [former.count for former in growth.former]
    headers = (mapping.read_header(shm_dir / name) for name in node.currents().values())
    here = [int(header["partition_count"]) or 1 for header in headers if header is not None]
    return min((known for known in here if known in counts), default=count) if here else counts[0]


class KnownGrowth:
    """What a node knows of the deployment's growths, to store it again in a control plane that has lost it: one that
    was wiped, or whose replica took over before it had the last.
    """

    def __init__(self, backend: Backend, node: Node) -> None:
        self._backend = backend
        self._node = node
        self.was_renewed = False

    def renew(self) -> None:
        """Remember what is stored. If the node knows of growths since, store these again, with the number of
        partitions, and close the former logs, which a node without rows begins with.

        :raises ConnectionFailedError: if the control plane or a log cannot be reached.
        """
        text, remembered = self._backend.control.growth(), self._node.state().growth
        stored, known = Growth.parse(text), Growth.parse(remembered)
        if known.follows(stored):
            self._restore(known.restored(stored), text)
        elif text is not None and stored.state is State.settled:
            self._node.remember_growth(text)
        self.was_renewed = True

    def _restore(self, growth: Growth, expected: str | None) -> None:
        control, count = self._backend.control, 2 * growth.counts[-1]
        in_force = control.settle_partitions(growth.counts[0], stream_keys=growth.stream_keys)
        if in_force not in (*growth.counts, count):  # It is another deployment by now, which refuses this node.
            return
        growth = replace(growth, former=tuple(self._closed(growth, former) for former in growth.former))
        if control.swap_growth(growth.to_json(), expected=expected, count=count):
            _log.warning("growth_restored", partitions=count, why="the control plane had lost it")
            self._backend.forget_partitions()

    def _closed(self, growth: Growth, former: Former) -> Former:
        """Close the logs of a former number, and begin those that follow: some may have been made anew since."""
        logs, backend = [], self._backend
        ends = {(log.stream_key, log.partition, log.identity): log.end for log in former.logs}
        for key in growth.stream_keys:
            for number in range(former.count):
                log = backend.log(key, number, of=former.count)
                log.close_for_appends(growth.number, growth.stream_keys)
                identity = log.identity()
                logs.append(Closed(key, number, identity, ends.get((key, number, identity), 0)))
            for number in range(2 * former.count):
                backend.log(key, number, of=2 * former.count).begin_behind(former.end + 1)
        return replace(former, logs=tuple(logs))


def grown_from(backend: Backend, node: Node, count: int) -> Former | None:
    """What the deployment has grown from, if that is ``count``; None while the growth is under way.

    The node remembers the growth before it goes over, to be able to give it back.
    """
    text = backend.control.growth()
    growth = Growth.parse(text)
    former = next((former for former in growth.former if former.count == count), None)
    if former is not None and text is not None and not Growth.parse(node.state().growth).follows(growth):
        node.remember_growth(text)
    return former


def carry_over(
    backend: Backend, stream_key: str, segments: Iterable[Segment], partitioning: Partitioning, former: Former
) -> None:
    """Flip segments that have applied all logs of the former number of partitions.

    :raises CapacityExceededError: if memory is out. :raises WriterFencedError: if another process overtook this one.
    """
    count, begins = partitioning.count, former.end + 1
    logs = [backend.log(stream_key, number, of=count).begin_behind(begins) for number in range(count)]
    for segment in segments:
        for closed in former.logs:
            if closed.stream_key == stream_key:
                segment.know_log(closed.partition, closed.identity)
        repartition(segment, partitioning, logs, begins)
