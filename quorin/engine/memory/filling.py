"""Partitions that a node was given beside those that it had: no read answers for them until their rows are there.

Until then a partition's ``confirmed_ns`` in the header is below 0: :data:`FILLING`, and once all rows are there, minus
the time of that. Reads that began before may have missed a row, so the partition is shown some seconds later.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Mask
    from quorin.engine.format.partition import Partitioning

FILLING = -1
SETTLE_NS = 5_000_000_000


def filled_now() -> int:
    """The word of a partition whose rows are there from now on."""
    return -time.time_ns()


def is_hidden(confirmed_ns: int) -> bool:
    """Whether reads do not answer for a partition with this word."""
    return confirmed_ns == FILLING or (confirmed_ns < 0 and time.time_ns() + confirmed_ns < SETTLE_NS)


def hidden_of(partitions: AnyArray, partitioning: Partitioning) -> frozenset[int]:
    """Those of the partitions that are held for which reads do not answer, by a header's table."""
    words = partitions["confirmed_ns"]
    return frozenset(one for one in partitioning.held if is_hidden(int(words[one])))


def shown(held: Mask, partitions: AnyArray) -> Mask:
    """``held``, a mask of partitions, without those for which reads do not answer."""
    words = partitions["confirmed_ns"][: len(held)]
    return held & np.array([not is_hidden(word) for word in words.tolist()], np.bool_)
