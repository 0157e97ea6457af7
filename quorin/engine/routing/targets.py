"""Which servers to ask for which partitions: decided without I/O."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Iterable, Mapping

    from quorin.engine.ops.holders import Holder


class Target(NamedTuple):
    """A server to ask: its URL, and the node that it serves for."""

    url: str
    node: str


def targets_of(holders: Iterable[Holder], *, own_node: str, avoided: Collection[str]) -> frozenset[Target]:
    """The servers of a partition that are worth asking, the best ones only: of nodes that are up to date rather than of
    others, and not among the ``avoided`` URLs, unless there is no other.
    """
    ranked: dict[tuple[bool, bool], list[Target]] = {}
    for holder in holders:
        if holder.node != own_node:
            for url in holder.urls:
                ranked.setdefault((url in avoided, not holder.is_ready), []).append(Target(url, holder.node))
    return frozenset(ranked[min(ranked)]) if ranked else frozenset()


def assign(choices: Mapping[int, frozenset[Target]], rng: random.Random) -> dict[Target, list[int]]:
    """Each partition that has a choice of servers to one of them: few servers in all, and by chance among equals."""
    waiting: dict[frozenset[Target], list[int]] = {}
    for partition, targets in choices.items():
        if targets:
            waiting.setdefault(targets, []).append(partition)
    assigned: dict[Target, list[int]] = {}
    while waiting:
        counts: Counter[Target] = Counter()
        for targets, partitions in waiting.items():
            counts.update(dict.fromkeys(targets, len(partitions)))
        most = max(counts.values())
        best = rng.choice(sorted(target for target, count in counts.items() if count == most))
        served = [targets for targets in waiting if best in targets]
        assigned[best] = sorted(partition for targets in served for partition in waiting.pop(targets))
    return assigned
