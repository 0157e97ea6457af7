"""Snapshots in a directory or an object storage: written complete or not at all, and kept to a number."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorin.engine.bootstrap import image, names
from quorin.engine.bootstrap.files import FileSource, SnapshotResult, write_file
from quorin.engine.format.partition import Partitioning, ranges
from quorin.engine.history.files import PENDING_SUFFIX
from quorin.engine.history.storage import LEFTOVER_SECONDS, Storage, VanishedError
from quorin.errors import PartitionCountError, SnapshotUnavailableError
from quorin.schema import SCHEMA_NAME

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from quorin.engine.backend.protocols import Beginnings
    from quorin.engine.bootstrap.image import Progress, Source
    from quorin.engine.bootstrap.names import SnapshotFile
    from quorin.engine.bootstrap.pace import Pace
    from quorin.engine.memory.view import SegmentView
    from quorin.shm import Segment


class SnapshotStore:
    """The newest snapshots of any number of schemas below ``url``: a directory, or a URL that ``pyarrow.fs`` supports
    (``file://``, ``s3://``, ``gs://``, ...); with ``filesystem``, a path in that filesystem.

    Of each schema the ``keep`` newest stay. A snapshot is there complete or not at all: a local file (mode 0600) is
    written aside and renamed; an object whose upload died has another size than its name says, and is no snapshot. Its
    checksums are verified when it is restored.

    A store belongs to one deployment, as a history does. Any number of processes may read and write it.

    :raises ValueError: if ``keep`` is less than 1.
    :raises SnapshotUnavailableError: for a URL that pyarrow does not support; from all methods, if the store is
        unavailable.
    """

    def __init__(self, url: str | os.PathLike[str], *, keep: int = 3, filesystem: Any = None) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._storage = Storage(url, filesystem, what="snapshots", error=SnapshotUnavailableError)
        self._keep = keep

    def __repr__(self) -> str:
        return f"<SnapshotStore {self.address}>"

    @property
    def address(self) -> str:
        """The URL without keys or passwords."""
        return self._storage.address

    def prepare(self) -> None:
        """Create the directory of a local store now, rather than with the first snapshot.

        :raises SnapshotUnavailableError: if it is not writable.
        """
        self._storage.prepare()

    def of_partitions(self, partitioning: Partitioning) -> SnapshotStore:
        """The store of the nodes that hold the same partitions; itself, if the deployment has one."""
        if partitioning.count == 1:
            return self
        return self._under(f"partitions={partitioning.count}", f"held={ranges(partitioning.held)}")

    def covering(self, partitioning: Partitioning) -> list[SnapshotStore]:
        """The stores of the nodes that hold all of these partitions, and maybe more."""
        count, found = partitioning.count, []
        folder = f"partitions={count}"
        for name in self._storage.under(folder).folders():
            with suppress(PartitionCountError):
                if name.startswith("held=") and Partitioning.parse(name[5:], count).held >= partitioning.held:
                    found.append(self._under(folder, name))
        return found

    def _under(self, *names: str) -> SnapshotStore:
        store = object.__new__(type(self))
        store.__dict__.update(self.__dict__, _storage=self._storage.under(*names))
        return store

    def snapshots(self, schema_name: str) -> list[SnapshotFile]:
        """The snapshots of a schema, by name: those of one log by position. Uploads that died are left out."""
        infos = self._storage.files(self._folder(schema_name))
        found = (names.parse_path(info.path, info.size) for info in infos)
        return sorted((file for file in found if file is not None), key=lambda file: file.name)

    def save(
        self,
        segment: Segment,
        *,
        beginning: Beginnings = None,
        progress: Progress | None = None,
        pace: Pace | None = None,
    ) -> SnapshotResult:
        """Write a segment's snapshot, then remove older ones. The segment's writer and readers go on meanwhile.

        ``beginning`` is where the rows of the segment's schema begin in the log, if the node's file says so.

        The rows are copied to a local disk first: beside the snapshot in a local store, else in the directory for
        temporary files (``TMPDIR``). A crash leaves the snapshots that were there, the new one whole, or a leftover
        that a later call removes. ``progress`` is called with bytes done and all bytes.

        :raises SharedMemoryError: if a local disk has no room.
        """
        view = segment.current_view()
        schema_name = view.stored.__name__
        name_of = partial(image.name_of, beginning=beginning)
        if self._storage.is_local:
            folder = self._storage.make_folder(schema_name)
            result = write_file(view, folder, name_of, progress=progress, pace=pace)
        else:
            result = self._upload(view, name_of, progress, pace)
        self._prune(schema_name, segment.log_identity)
        return result

    @contextmanager
    def open(self, file: SnapshotFile) -> Iterator[Source]:
        """A snapshot, to be read in order. :raises VanishedError: if it was removed since it was listed."""
        if not self._storage.is_local:
            with self._storage.open(file.path) as opened:
                yield ObjectSource(opened, file, self._storage)
        elif not Path(file.path).exists():
            raise VanishedError(f"{file.path} is gone since it was listed")
        else:
            with FileSource(Path(file.path)) as source:
                yield source

    def _folder(self, schema_name: str) -> str:
        if not SCHEMA_NAME.match(schema_name):
            raise ValueError(f"expected the name of a schema, got {schema_name!r}")
        return self._storage.folder(schema_name)

    def _upload(
        self, view: SegmentView, name_of: Callable[[SegmentView], str], progress: Progress | None, pace: Pace | None
    ) -> SnapshotResult:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="quorin-snapshot-") as aside:
            copy = image.copied(view, Path(aside), pace)
        # The copy has no name any more, only memory: a process that dies leaves nothing.
        path = f"{self._folder(view.stored.__name__)}/{name_of(copy)}"
        try:
            self._storage.stream(path, image.blocks(copy, progress, pace))
        except BaseException:
            with suppress(SnapshotUnavailableError):
                self._storage.remove(path)
            raise
        return SnapshotResult.of(Path(path), copy, started)

    def _prune(self, schema_name: str, log_identity: int) -> None:
        """Remove all but the newest snapshots, and what writers left that died long ago."""
        folder, old = self._folder(schema_name), time.time() - LEFTOVER_SECONDS
        for file in names.superseded(self.snapshots(schema_name), log_identity, self._keep):
            self._storage.remove(file.path)
        for info in self._storage.files(folder):
            is_part = names.is_like_snapshot(info.path) and names.parse_path(info.path, info.size) is None
            if is_part and info.mtime is not None and info.mtime.timestamp() < old:
                self._storage.remove(info.path)
        if self._storage.is_local:
            for aside in Path(folder).glob(f".snapshot.*{PENDING_SUFFIX}"):
                if max((path.stat().st_mtime for path in (aside, *aside.iterdir())), default=old) < old:
                    shutil.rmtree(aside, ignore_errors=True)


class ObjectSource:
    """A snapshot in an object storage, read in order.

    :raises SnapshotUnavailableError: if it can't be read.
    """

    def __init__(self, opened: Any, file: SnapshotFile, storage: Storage) -> None:
        self.name, self.size = file.path, file.size
        self._opened, self._storage = opened, storage

    def read_into(self, into: memoryview) -> int:
        """Read at least one byte, at most as many as fit; 0 at the end."""
        try:
            return int(self._opened.readinto(into))
        except OSError as error:
            raise self._storage.unavailable(f"cannot read {self.name}", error) from None
