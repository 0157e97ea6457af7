"""Where a history's files are: in its base, or, for a deployment with several partitions, in a folder for each.

The folder of partition 3 of 16 is ``partitions=16/partition=3``. An entity's rows are all in one partition, so reads of
the whole history need no order between partitions. A deployment that grew has folders of each number that it had,
which together are its history: what is in those of a higher number came later.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from quorin.engine.format.partition import check_count
from quorin.errors import PartitionCountError, PartitionedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.history.storage import Storage

_NAME = re.compile(r"partitions=([1-9][0-9]{0,2})\Z")


class Folders:
    """The folders of a history. ``count`` None is what the history has; ``partition`` is one of them, or None for all.

    :raises PartitionCountError: for a number that no deployment can have, or another than the history has.
    """

    def __init__(self, base: Storage, count: int | None = None, partition: int | None = None) -> None:
        self.base = base
        self.partition = partition
        self._count = None if count is None else check_count(count)
        self._is_checked = False

    def of_partition(self, partition: int, count: int) -> Folders:
        """The folder of one partition."""
        if self._count not in (None, count) or (self.partition is not None and self.partition != partition):
            raise PartitionCountError(f"the history {self.base.address} is of {self._count} partitions, not {count}")
        return Folders(self.base, count, partition)

    def to_write(self) -> Storage:
        """The folder that rows are written to.

        :raises PartitionedError: if it is not one.
        """
        if self.partition is None and not self._is_checked:
            self._check_one()
        if self.partition is None or self._count == 1:
            return self.base
        return self.base.under(f"partitions={self._count}", f"partition={self.partition}")

    def to_read(self) -> list[list[Storage]]:
        """The folders that have all rows: one, or one for each partition, for each number of them that there was."""
        if self.partition is not None:
            return [[self.to_write()]]
        return [_of_count(self.base, count) for count in self.counts() or [1]]

    def counts(self) -> list[int]:
        """The numbers of partitions that there are folders of, sorted; 1 for the folder of one partition."""
        return [1] if self.partition is not None else counts_of(self.base) if self._count is None else [self._count]

    def along(self, partition: int, count: int, *, above: int = 0) -> list[Storage]:
        """The folders with the rows of a partition, of ``count``: its own behind those of the partitions that it was a
        part of before the deployment grew, when there were more than ``above``.
        """
        if self.partition is not None:
            return [self.to_write()]
        return [_of_count(self.base, one)[partition * one // count] for one in self.counts() if above < one <= count]

    @property
    def is_of_one(self) -> bool:
        """Whether there are no folders of several partitions."""
        return counts_of(self.base) in ([], [1])

    def _check_one(self) -> None:
        counts = [count for count in counts_of(self.base) if count > 1] if self._count in (None, 1) else [self._count]
        if counts:
            raise PartitionedError(
                f"the history {self.base.address} is of {counts[-1]} partitions, each with positions of its own: "
                f"expected a use of one of them, of_partition(partition, {counts[-1]})"
            )
        self._is_checked = True


def counts_of(base: Storage) -> list[int]:
    """The numbers of partitions that a history has folders of; 1 for schemas in the base itself."""
    names = base.folders()
    counts = {int(match[1]) for name in names if (match := _NAME.match(name))}
    return sorted(counts | ({1} if any(not _NAME.match(name) for name in names) else set()))


def schemas_of(base: Storage) -> Iterator[tuple[Storage, str]]:
    """Every schema of every folder, of whatever number of partitions."""
    for count in counts_of(base):
        for folder in _of_count(base, count):
            yield from ((folder, name) for name in folder.folders() if not _NAME.match(name))


def _of_count(base: Storage, count: int) -> list[Storage]:
    if count == 1:
        return [base]
    return [base.under(f"partitions={count}", f"partition={partition}") for partition in range(count)]
