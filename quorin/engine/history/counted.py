"""Which rows of a history count: those of loads from the commit on, and after it none from before the load's beginning.

The history keeps all rows of the log, those of loads with the id of the load in the column :data:`LOAD`. A commit is a
small file of its own, named by the load's beginning and the commit's position, in the folder :data:`COMMITS`. It is
written after the load's rows are durable, and before any file with later positions; so a file that has rows behind a
commit is never listed without it.

A row of a load counts as one at the load's beginning: whatever was pushed since then comes after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from quorin.engine.rows.column import numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from quorin.engine.arrays import AnyArray, Int64s

LOAD = ":load"
"""No field has this name: names of fields are identifiers."""
COMMITS = "_loads"
_NAME = re.compile(r"(\d{20})-(\d{20})\.load\Z")
_LAST = 2**63 - 1


class Commit(NamedTuple):
    """A committed load: the position at which it began, which is its id, and that of its commit."""

    begin: int
    position: int

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return f"{self.begin:020}-{self.position:020}.load"


class Step(NamedTuple):
    """Rows to apply together: those of a load, or (``load`` 0) the others with positions in ``(low, high]``."""

    load: int
    low: int
    high: int


def commits_of(paths: Iterable[str]) -> tuple[Commit, ...]:
    """The commits whose files these are, in the order of the log; other files are left out."""
    matches = (_NAME.match(path.rpartition("/")[2]) for path in paths)
    return tuple(sorted(Commit(int(match[1]), int(match[2])) for match in matches if match is not None))


def common(partitions: Sequence[Sequence[Commit]]) -> tuple[Commit, ...]:
    """The commits that the histories of all partitions have, each with the highest of its positions there. A load has
    one id in all logs, behind all positions before it, so they are in one order.
    """
    found: dict[int, list[int]] = {}
    for commits in partitions:
        for commit in commits:
            found.setdefault(commit.begin, []).append(commit.position)
    whole = (Commit(begin, max(at)) for begin, at in found.items() if len(at) == len(partitions))
    return tuple(sorted(whole))


def is_commit(path: str) -> bool:
    """Whether a path is that of a commit's file."""
    return path.split("/")[-2:-1] == [COMMITS] and _NAME.match(path.rpartition("/")[2]) is not None


@dataclass(frozen=True, slots=True)
class Counted:
    """The committed loads, and the last position that counts. Committed loads do not overlap."""

    commits: tuple[Commit, ...] = ()
    through: int = _LAST

    def as_of(self, position: int) -> Counted:
        """What counted when the log was at a position."""
        return replace(self, commits=tuple(one for one in self.commits if one.position <= position), through=position)

    @property
    def floor(self) -> int:
        """The position up to which everything was replaced: the beginning of the last load that was committed."""
        return self.commits[-1].begin if self.commits else 0

    def steps(self, after: int, *, replaced: bool) -> list[Step]:
        """What to apply in this order; ``replaced`` leaves out what the last commit has replaced."""
        steps, low = [], after
        for begin, position in self.commits:
            if position <= after:
                continue
            if begin > low:
                steps.append(Step(0, low, begin))
            steps.append(Step(begin, begin, position))
            low = max(low, begin)
        steps.append(Step(0, low, self.through))
        if not replaced:
            return steps
        last = max((index for index, step in enumerate(steps) if step.load), default=0)
        return [step for step in steps[last:] if step.high > self.floor or step.load]

    def mask(self, rows: pa.RecordBatch, *, replaced: bool) -> AnyArray:
        """Which rows count, of a batch with the column ``position``, and :data:`LOAD` if any of them is of a load."""
        positions, loads = numbers(rows.column("position"), np.int64), loads_of(rows)
        kept = np.isin(loads, [0, *(one.begin for one in self.commits)]) & (positions <= self.through)
        return kept & (order_of(rows) >= self.floor) & ((loads == 0) <= (positions > self.floor)) if replaced else kept


def loads_of(rows: pa.RecordBatch) -> Int64s:
    """The load of each row; 0 for none."""
    if LOAD not in rows.schema.names:
        return np.zeros(len(rows), np.int64)
    return numbers(rows.column(LOAD).cast(pa.int64()).fill_null(0), np.int64)


def order_of(rows: pa.RecordBatch) -> Int64s:
    """The position that each row counts at: that of its entry, or the beginning of its load."""
    loads = loads_of(rows)
    return np.where(loads > 0, loads, numbers(rows.column("position"), np.int64))
