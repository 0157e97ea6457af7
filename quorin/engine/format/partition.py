"""Partitions: which log an entity's rows go to, and which partitions a node holds.

A deployment has a power of two of partitions, fixed when it is made. The partition of an entity is the top bits of the
pinned hash of its id, so that with twice as many, partition ``p`` becomes ``2p`` and ``2p + 1``. The compiled kernel
(:mod:`quorin.engine.kernels.partitions`) must agree with :func:`partition_of` on every id, and a test holds them
together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quorin.engine.format.hashing import hash_bytes
from quorin.errors import PartitionCountError

MAX_PARTITIONS = 256

_RANGES = re.compile(r"[0-9]{1,3}(?:-[0-9]{1,3})?(?:,[0-9]{1,3}(?:-[0-9]{1,3})?)*")


def check_count(count: int) -> int:
    """The count itself.

    :raises PartitionCountError: unless it is a power of two from 1 to 256.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_PARTITIONS or count & (count - 1):
        raise PartitionCountError(f"partitions: expected a power of two from 1 to {MAX_PARTITIONS}, got {count!r}")
    return count


def partition_of(entity_id: str | bytes, count: int) -> int:
    """The partition, of ``count``, that an entity's rows are in: the top bits of the hash of its id in UTF-8."""
    if count == 1:
        return 0
    data = entity_id.encode() if isinstance(entity_id, str) else entity_id
    return hash_bytes(data) >> hash_shift(count)


def hash_shift(count: int) -> int:
    """By how many bits a hash is shifted to the right to get the partition of ``count``, which is at least 2."""
    return 65 - count.bit_length()


@dataclass(frozen=True, slots=True)
class Partitioning:
    """Which partitions a node holds, and how many there are."""

    count: int = 1
    held: frozenset[int] = frozenset({0})

    def __post_init__(self) -> None:
        check_count(self.count)
        if not self.held or not all(0 <= partition < self.count for partition in self.held):
            raise PartitionCountError(
                f"partitions {ranges(self.held)!r}: expected at least one, each below {self.count}, the number of "
                "partitions"
            )

    @property
    def is_partial(self) -> bool:
        """Whether some partitions are not held."""
        return len(self.held) < self.count

    @classmethod
    def all(cls, count: int) -> Partitioning:
        """A node that holds all partitions."""
        return cls(count, frozenset(range(check_count(count))))

    @classmethod
    def of(cls, held: Iterable[int] | str | None, count: int) -> Partitioning:
        """The partitions to hold of ``count``: numbers, or a text such as ``0-7``; None is all.

        :raises PartitionCountError: for partitions that there are not.
        """
        if held is None:
            return cls.all(count)
        return cls.parse(held, count) if isinstance(held, str) else cls(count, frozenset(held))

    def at(self, count: int) -> Partitioning:
        """The partitions that have the same rows if there are ``count``: of twice as many, ``2p`` and ``2p + 1``. Of
        fewer, those that have them and may have more.
        """
        if check_count(count) >= self.count:
            times = count // self.count
            held = {partition * times + part for partition in self.held for part in range(times)}
        else:
            held = {partition * count // self.count for partition in self.held}
        return Partitioning(count, frozenset(held))

    @classmethod
    def parse(cls, text: str, count: int) -> Partitioning:
        """The partitions of a text such as ``0-7,9``, or ``0-7/16``, which names the number that it speaks of and means
        the same rows for any other.

        :raises PartitionCountError: for another text, or a partition that there is not.
        """
        check_count(count)
        if isinstance(text, str) and (spoken := re.fullmatch(r"([^/]*)/([0-9]{1,3})", text)):
            return cls.parse(spoken[1], check_count(int(spoken[2]))).at(count)
        if not isinstance(text, str) or not _RANGES.fullmatch(text):
            raise PartitionCountError(f"expected partitions such as '0-7', '0-3,9' or '0-7/16', got {text!r}")
        held: set[int] = set()
        for part in text.split(","):
            first, _, last = part.partition("-")
            if int(last or first) < int(first):
                raise PartitionCountError(f"partitions {text!r}: expected {part!r} the other way round")
            held.update(range(int(first), int(last or first) + 1))
        if max(held) >= count:
            raise PartitionCountError(
                f"partitions {text!r}: the deployment has {count}, expected numbers up to {count - 1}"
            )
        return cls(count, frozenset(held))

    def __str__(self) -> str:
        return f"{ranges(self.held)} of {self.count}"


def share(ordinal: int, of: int, count: int) -> frozenset[int]:
    """The partitions of the node with an ordinal from 0, of so many nodes: contiguous, and nearly as many on each.

    :raises PartitionCountError: for an ordinal that there is not, or if there are more nodes than partitions.
    """
    check_count(count)
    if not 0 <= ordinal < of:
        raise PartitionCountError(f"ordinal {ordinal}: expected a number from 0 to {of - 1}, below the number of nodes")
    if of > count:
        raise PartitionCountError(f"{of} nodes for {count} partitions: expected at most one node for each partition")
    return frozenset(range(ordinal * count // of, (ordinal + 1) * count // of))


def ranges(partitions: Iterable[int]) -> str:
    """Partitions as a text that :meth:`Partitioning.parse` reads: ``0-7,9``."""
    words: list[str] = []
    first = last = -2
    for partition in [*sorted(partitions), MAX_PARTITIONS + 1]:
        if partition == last + 1:
            last = partition
            continue
        if first >= 0:
            words.append(str(first) if first == last else f"{first}-{last}")
        first = last = partition
    return ",".join(words)
