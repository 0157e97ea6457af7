"""The datasets of a schema in a history: one, or one for each partition."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow.parquet as pq

from quorin.engine.history import parquet as columns
from quorin.engine.history.compaction import compact
from quorin.engine.history.completeness import Completeness
from quorin.engine.history.counted import Counted, common
from quorin.engine.history.dataset import Dataset, Loaded
from quorin.engine.history.files import file_name
from quorin.engine.history.storage import VanishedError
from quorin.errors import HistoryUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from quorin.engine.history.folders import Folders
    from quorin.engine.history.storage import Storage
    from quorin.schema import Schema

_ATTEMPTS = 5
_Result = TypeVar("_Result")


class Datasets:
    """The datasets in the folders of a history, by the name of a schema."""

    def __init__(self, folders: Folders, *, strict: bool) -> None:
        self._folders = folders
        self._strict = strict
        self._reported: set[str] = set()

    def in_folders(self, folders: Folders) -> Datasets:
        """The datasets of the same names in other folders."""
        return Datasets(folders, strict=self._strict)

    def only(self, schema_name: str) -> Dataset:
        """The dataset of the only partition, or of the chosen one. :raises PartitionedError: if there are several."""
        return self._in(self._folders.to_write(), schema_name)

    def each(self, schema_name: str) -> list[Loaded]:
        """The files in force of each partition, with their footers read. Loads count that all partitions have."""
        groups = [[self._in(folder, schema_name).load() for folder in group] for group in self._folders.to_read()]
        if len(groups) == len(groups[0]) == 1:
            return groups[0]
        # A load of a later number of partitions has replaced rows of an earlier one, too.
        counted = Counted(tuple(sorted(chain(*(common([one.counted.commits for one in group]) for group in groups)))))
        return [one.counting(counted) for one in chain(*groups)]

    def last_position(self, schema_name: str) -> int:
        """The last log position of :meth:`only`; 0 without files."""
        return self.only(schema_name).listing().through

    @property
    def partition_count(self) -> int:
        """The highest number of partitions that the history has folders of; 1 for the history of one of them."""
        return max(self._folders.counts(), default=1)

    def load_partition(self, schema_name: str, partition: int, count: int, *, above: int = 0) -> Loaded:
        """The files in force of one partition of ``count``, those from before the deployment grew included, if there
        were more than ``above`` partitions then.
        """
        folders = self._folders.along(partition, count, above=above)
        # Before the files: those that are written meanwhile only go further. A folder says nothing of another one.
        recorded = Completeness.read(folders[0]) if len(folders) == 1 else Completeness()
        loaded = Loaded(self._folders.base, [], [])
        for folder in folders:
            loaded = loaded.followed_by(self._in(folder, schema_name).load())
        return loaded.completed(recorded.of(schema_name, loaded.file_through))

    def load(self, schema_name: str) -> Loaded:
        """The files in force of all partitions as one."""
        return Loaded.union(self._folders.base, self.each(schema_name))

    def reading(self, schema_name: str, read: Callable[[], _Result]) -> _Result:
        """Read, and again if a compaction removed files meanwhile."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(VanishedError):
                return read()
        address = self._folders.base.address
        raise HistoryUnavailableError(f"files of {schema_name!r} at {address} vanished in every read")

    def compact(self, schema_name: str, compression: str) -> int:
        """Merge small files; returns by how many there are fewer."""
        fewer = 0
        for folder in chain(*self._folders.to_read()):
            dataset = self._in(folder, schema_name)
            before = len(dataset.listing().files)
            compact(dataset, folder, compression)
            fewer += before - len(dataset.listing().files)
        return fewer

    def _in(self, folder: Storage, schema_name: str) -> Dataset:
        return Dataset(folder, schema_name, strict=self._strict, reported=self._reported)


def write_rows(folder: Storage, compression: str, schema: Schema, after: int, through: int, table: pa.Table) -> None:
    """Write all rows of a schema with positions in ``(after, through]`` as a file of today."""
    day = datetime.now(UTC).strftime("day=%Y-%m-%d")
    options = columns.writer_options(table, compression)
    rows = columns.row_group_rows(table.nbytes, len(table))

    def fill(sink: Any) -> None:
        with pq.ParquetWriter(sink, table.schema, **options) as writer:
            writer.write_table(table, rows)

    folder.write(folder.folder(schema.__name__, day, file_name(after, through)), fill)
