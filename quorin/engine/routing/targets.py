"""Which servers to ask for which partitions: decided without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Iterable, Mapping

    from quorin.engine.ops.holders import Holder


class Target(NamedTuple):
    """A server to ask: its URL, and the node that it serves for."""

    url: str
    node: str


def targets_of(holders: Iterable[Holder], *, own_node: str, avoided: Collection[str]) -> list[Target]:
    """The servers of a partition that are worth asking, the best ones only: of nodes that are up to date rather than of
    others, and not among the ``avoided`` URLs, unless there is no other.
    """
    ranked: dict[tuple[bool, bool], list[Target]] = {}
    for holder in holders:
        if holder.node != own_node:
            for url in holder.urls:
                ranked.setdefault((url in avoided, not holder.is_ready), []).append(Target(url, holder.node))
    return ranked[min(ranked)] if ranked else []


def assign(choices: Mapping[int, Collection[Target]], rng: random.Random) -> dict[Target, list[int]]:
    """Each partition that has a choice of servers to one of them: few servers in all, and by chance among equals."""
    assigned: dict[Target, list[int]] = {}
    waiting = {partition: set(targets) for partition, targets in choices.items() if targets}
    targets = sorted({target for of_one in waiting.values() for target in of_one})
    rng.shuffle(targets)
    while waiting:
        by_target = {target: [p for p, of_one in waiting.items() if target in of_one] for target in targets}
        best = max(targets, key=lambda target: len(by_target[target]))
        assigned[best] = sorted(by_target[best])
        for partition in by_target[best]:
            del waiting[partition]
    return assigned
