"""Segments and the registry that names them.

A :class:`Segment` is what a process reads and writes through. It stands for a line of generations: when the writer
grows, compacts or replaces a segment it builds the next file and flips, and every open ``Segment`` follows at its next
read.
"""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorin.logging import get_logger

from quorin import format as fmt
from quorin import mapping
from quorin.errors import (
    CorruptSegmentError,
    QuorinError,
    SchemaError,
    SchemaMismatchError,
    SegmentClosedError,
    SegmentNotFoundError,
    SegmentReadOnlyError,
    WriterFencedError,
    WriterLeaseHeldError,
)
from quorin.schema import FeatureSchema, Schema, schema_to_json
from quorin.view import SEGMENT_NAME, SegmentView, new_lineage, segment_name

if TYPE_CHECKING:
    from types import TracebackType

    from quorin.backend import ControlPlane

__all__ = [
    "CorruptSegmentError",
    "SchemaCRCMismatchError",
    "SchemaMismatchError",
    "Segment",
    "SegmentNotFoundError",
    "SegmentRegistry",
]

SchemaCRCMismatchError = SchemaMismatchError

SHM_DIR = "/dev/shm"  # noqa: S108 - where POSIX shared memory lives on Linux; files there are created 0600, exclusively
_LEAST_HEAP_BYTES = 1 << 16
_HEAP_BYTES_A_VALUE = 32

_log = get_logger(__name__)


class Segment:
    """Rows of one schema in shared memory, open in this process.

    Any number of threads and processes may read; one process at a time writes, the one that holds the writer lease.
    Made by :class:`SegmentRegistry`. A context manager: leaving it closes.
    """

    __slots__ = ("__weakref__", "_control", "_epoch", "_lease", "_view", "read_only")

    def __init__(self, view: SegmentView, control: ControlPlane | None, *, read_only: bool) -> None:
        self._view = view
        self._control = control
        self._lease: mapping.FileLock | None = None
        self._epoch = 0
        self.read_only = read_only

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many entities have a row."""
        return int(self.current_view().header["entity_count"])

    def __repr__(self) -> str:
        view = self._view
        if isinstance(view, _ClosedView):
            return f"<Segment {view.closed_name} (closed)>"
        return f"<Segment {view.name}: {len(self)} of {self.capacity} entities>"

    @property
    def name(self) -> str:
        """``quorin_<Schema>_<hex>``, the name of the current generation's file."""
        name: str = self.current_view().name
        return name

    @property
    def schema(self) -> Schema:
        """The schema of its rows."""
        return self._view.schema

    @property
    def capacity(self) -> int:
        """Entities that fit before the segment grows."""
        return self.current_view().layout.capacity

    @property
    def position(self) -> int:
        """The log position up to which everything is applied; 0 before the first."""
        from quorin import kernels

        view = self.current_view()
        return int(kernels.load_acquire(view.mapping.address + fmt.header_offset("partitions") + 8))

    @property
    def log_identity(self) -> int:
        """Which log :attr:`position` belongs to; 0 before the first."""
        return int(self.current_view().header["partitions"][0]["log_identity"])

    @property
    def holds_writer_lease(self) -> bool:
        """Whether this object, in this process, is the segment's writer."""
        return self._lease is not None and self._lease.is_ours

    def stats(self) -> dict[str, Any]:
        """Rows, bytes, load and who writes: one flat dictionary of plain values."""
        view = self.current_view()
        header = view.header
        return {
            "name": view.name,
            "path": str(view.path),
            "schema": view.schema.__name__,
            "schema_version": view.schema.version,
            "rows": int(header["entity_count"]),
            "deleted_rows": int(header["deleted_count"]),
            "capacity": view.layout.capacity,
            "load": int(header["entity_count"] + header["deleted_count"]) / view.layout.capacity,
            "bytes": view.layout.file_bytes,
            "row_bytes": view.layout.row_stride,
            "heap_bytes": view.layout.heap_bytes,
            "heap_used_bytes": int(header["heap_used"]),
            "heap_garbage_bytes": int(header["heap_garbage"]),
            "generation": view.generation,
            "position": self.position,
            "writer_pid": int(header["writer_pid"]) if int(header["writer_active"]) else None,
            "writer_epoch": int(header["epoch"]),
            "age_seconds": (time.time_ns() - int(header["created_ns"])) / 1e9,
        }

    def current_view(self) -> SegmentView:
        """The view of the newest generation, followed to it if need be. :raises SegmentClosedError: after close."""
        view = self._view
        if view.successor_name is not None:
            return self.follow(view)
        return view

    def follow(self, seen: SegmentView) -> SegmentView:
        """Attach the newest successor of ``seen``; other threads may do the same at the same time, without harm."""
        if self._view is seen:
            self._view = _newest(seen, writable=not self.read_only)
        return self._view

    def acquire_writer_lease(self) -> None:
        """Become the segment's writer. Does nothing if this object is that already.

        The lease is the kernel's: it ends when it is released or when the process dies. If the last writer died with
        it, counts and free rows are rebuilt from the index, which always tells the truth.

        :raises WriterLeaseHeldError: if another holder has it. :raises SegmentReadOnlyError: if opened read-only.
        :raises WriterFencedError: if this object had the lease and was overtaken.
        """
        if self.read_only:
            raise SegmentReadOnlyError(
                f"segment {self.name!r} is open read-only; open it with read_only=False to write"
            )
        if self.holds_writer_lease:
            self._check_not_overtaken()
            return
        while True:
            view = self.current_view()
            lease = mapping.FileLock.try_acquire(view.path)
            if lease is None:
                raise WriterLeaseHeldError(
                    f"segment {view.name!r} has a writer already: process {int(view.header['writer_pid'])}"
                )
            if view.successor_name is None:
                break
            lease.release()
        self._begin_writing(view, lease)

    def release_writer_lease(self) -> None:
        """Stop being the writer, so that another may at once. Does nothing if not the writer."""
        if self._lease is None:
            return
        if self._lease.is_ours:
            self._view.header["writer_active"] = 0
        self._lease.release()
        self._lease = None
        _writers.discard(self)

    def commit_position(self, position: int, log_identity: int) -> None:
        """Publish that everything up to ``position`` of a log is applied; call it after the rows are.

        A crash before this call loses nothing: the next consumer applies the entry again, to the same effect.
        """
        from quorin import kernels

        self.acquire_writer_lease()
        view = self._view
        if int(view.header["partitions"][0]["log_identity"]) != log_identity:
            view.header["partitions"][0]["log_identity"] = log_identity
        kernels.store_release(view.mapping.address + fmt.header_offset("partitions") + 8, position)

    def replace(self, successor: SegmentView) -> None:
        """Put a finished successor in this generation's place; the caller holds the lease and has copied the rows.

        Readers follow from the next read on. The control plane is told after that; if it can't be reached, the old file
        stays as a signpost until the next flip, and nothing else is lost.
        """
        from quorin import kernels

        old, old_lease = self._view, self._lease
        if old_lease is None:
            raise WriterFencedError(f"process {os.getpid()} is not the writer of {old.name!r}, so it can't replace it")
        lease = mapping.FileLock.try_acquire(successor.path)
        if lease is None:
            raise WriterLeaseHeldError(
                f"segment {successor.name!r} was locked by another process before it was current"
            )
        self._lease, self._view = None, successor
        self._begin_writing(successor, lease)
        old.header["successor_name"] = successor.name.encode()
        kernels.store_release(old.mapping.address + fmt.header_offset("successor_ready"), 1)
        old.header["writer_active"] = 0
        if self._tell_control_plane(old, successor):
            mapping.unlink(old.path)
        old_lease.release()

    def close(self) -> None:
        """Let go of the memory and the lease. Reads after it raise :class:`SegmentClosedError`; a second call does
        nothing.

        The memory goes back to the system when no thread is inside a kernel any more. A child that closes an inherited
        segment does its parent no harm.
        """
        if not isinstance(self._view, _ClosedView):
            self.release_writer_lease()
            self._view = _ClosedView(self._view.name)  # type: ignore[assignment]

    def _begin_writing(self, view: SegmentView, lease: mapping.FileLock) -> None:
        from quorin import kernels

        if int(view.header["writer_active"]):
            import numpy as np

            rows = kernels.recover(view.descriptor, np.zeros(view.layout.row_limit, np.uint8))
            _log.warning("writer_recovered", segment=view.name, dead_pid=int(view.header["writer_pid"]), rows=rows)
        self._epoch = int(view.header["epoch"]) + 1
        view.header["epoch"] = self._epoch
        view.header["writer_pid"] = os.getpid()
        view.header["writer_since_ns"] = time.time_ns()
        view.header["writer_active"] = 1
        self._lease = lease
        _writers.add(self)

    def _check_not_overtaken(self) -> None:
        view = self._view
        if view.successor_name is not None or int(view.header["epoch"]) != self._epoch:
            self._lease, lease = None, self._lease
            if lease is not None:
                lease.release()
            raise WriterFencedError(
                f"process {os.getpid()} is no longer the writer of {view.name!r}: epoch {self._epoch} was followed by "
                f"{int(view.header['epoch'])}, successor {view.successor_name!r}; nothing was written"
            )

    def _tell_control_plane(self, old: SegmentView, successor: SegmentView) -> bool:
        if self._control is None:
            return True
        try:
            return self._control.set_current(successor.schema.__name__, successor.name, expected=old.name)
        except QuorinError as error:
            _log.warning("control_plane_not_told", segment=successor.name, replaces=old.name, error=str(error))
            return False


class SegmentRegistry:
    """Creates, finds and removes segments.

    ``connection`` is the control plane: a ``redis.Redis``, a URL (``redis://``, ``rediss://``, ``unix://``), or a
    directory path for the embedded one. Segment files live in ``shm_dir``; on a disk they survive a reboot.
    """

    def __init__(
        self, connection: Any, *, shm_dir: str | os.PathLike[str] = SHM_DIR, namespace: str = "quorin"
    ) -> None:
        from quorin.backend import connect

        self._directory = Path(shm_dir)
        if not self._directory.is_dir():
            raise SegmentNotFoundError(f"shm_dir {str(shm_dir)!r} is no directory")
        self.backend = connect(connection, namespace=namespace)
        self._control = self.backend.control

    def create(self, schema: Schema, *, capacity: int, max_id_bytes: int = 64, set_current: bool = True) -> Segment:
        """A new, empty segment, writable by this process, made current unless asked otherwise.

        An earlier current segment of the schema is replaced: its readers follow to the new one. ``capacity`` (entities)
        is a starting point; segments grow.

        :raises ValueError: for a capacity or id limit out of range. :raises SharedMemoryError: if there is no room.
        :raises WriterLeaseHeldError: if another process is writing to the segment that this one would replace.
        """
        _check_schema(schema)
        _check_range("capacity", capacity, 1, fmt.MAX_ROWS // 2)
        _check_range("max_id_bytes", max_id_bytes, 1, fmt.MAX_ID_BYTES)
        variable = sum(field.is_variable for field in schema.fields)
        view = SegmentView.create(
            self._directory,
            segment_name(schema.__name__, new_lineage(), 1),
            schema,
            capacity=capacity,
            max_id_bytes=max_id_bytes,
            heap_bytes=_LEAST_HEAP_BYTES + _HEAP_BYTES_A_VALUE * variable * capacity,
        )
        segment = Segment(view, self._control, read_only=False)
        if set_current:
            try:
                self._make_current(segment)
            except BaseException:
                segment.close()
                mapping.unlink(view.path)
                raise
        return segment

    def open_current(self, schema: Schema, *, read_only: bool = True) -> Segment:
        """The current segment of a schema.

        :raises SegmentNotFoundError: if there is none, or its file is gone (``/dev/shm`` is empty after a reboot).
        :raises SchemaMismatchError: if it holds another version or other fields. :raises CorruptSegmentError: if
            damaged.
        """
        _check_schema(schema)
        name = self._control.current(schema.__name__)
        if name is None:
            raise SegmentNotFoundError(
                f"no segment is current for schema {schema.__name__!r} at {self.backend.address}"
            )
        view = _attach_newest(self._directory, name, schema, writable=not read_only)
        return Segment(view, self._control, read_only=read_only)

    def close(self, segment: Segment) -> None:
        """Close a segment; its rows stay for others."""
        segment.close()

    def discard(self, segment: Segment) -> None:
        """Close a segment and remove its file; if it was current, none is current any more. Its rows are gone.

        :raises WriterLeaseHeldError: if another process writes to it.
        """
        view = segment.current_view()
        lease = None if segment.holds_writer_lease else mapping.FileLock.try_acquire(view.path)
        if lease is None and not segment.holds_writer_lease:
            raise WriterLeaseHeldError(f"segment {view.name!r} is written by process {int(view.header['writer_pid'])}")
        self._control.clear_current(view.schema.__name__, expected=view.name)
        mapping.unlink(view.path)
        segment.close()
        if lease is not None:
            lease.release()

    def _make_current(self, segment: Segment) -> None:
        schema = segment.schema
        self._control.put_schema(schema.__name__, schema_to_json(schema))
        name = self._control.current(schema.__name__)
        previous = self._attach_if_there(name)
        if previous is None:
            if not self._control.set_current(schema.__name__, segment.name, expected=name):
                raise WriterLeaseHeldError(
                    f"another process made a segment of {schema.__name__!r} current at the same time"
                )
            return
        for writer in list(_writers):
            if writer.name == previous.name:
                writer.release_writer_lease()
        old = Segment(previous, self._control, read_only=False)
        old.acquire_writer_lease()
        old.replace(segment.current_view())
        old.release_writer_lease()

    def _attach_if_there(self, name: str | None) -> SegmentView | None:
        if name is None:
            return None
        try:
            return _attach_newest(self._directory, name, None, writable=True)
        except (SegmentNotFoundError, CorruptSegmentError):
            return None


_writers: weakref.WeakSet[Segment] = weakref.WeakSet()


class _ClosedView:
    """Stands in for the view of a closed segment; whatever is asked of it says that the segment is closed."""

    def __init__(self, name: str) -> None:
        self.closed_name = name

    def __getattr__(self, attribute: str) -> Any:
        raise SegmentClosedError(f"segment {self.closed_name!r} is closed")


def _newest(view: SegmentView, *, writable: bool) -> SegmentView:
    while (successor := view.successor_name) is not None:
        view = _attach_newest(view.path.parent, successor, view.schema, writable=writable)
    return view


def _attach_newest(directory: Path, name: str, schema: Schema | None, *, writable: bool) -> SegmentView:
    """Attach ``name`` or, if that generation is gone already, the newest of its line."""
    if not SEGMENT_NAME.match(name):
        raise CorruptSegmentError(f"the control plane names {name!r}, which is no segment name")
    try:
        view = SegmentView.attach(directory / name, schema, writable=writable)
    except SegmentNotFoundError:
        generations = sorted(path.name for path in directory.glob(f"{name[:-4]}????") if SEGMENT_NAME.match(path.name))
        if not generations:
            raise SegmentNotFoundError(
                f"segment {name!r} is current, but there is no such file in {directory}"
            ) from None
        view = SegmentView.attach(directory / generations[-1], schema, writable=writable)
    return _newest(view, writable=writable)


def _check_schema(schema: object) -> None:
    if not (isinstance(schema, type) and issubclass(schema, FeatureSchema) and schema is not FeatureSchema):
        raise SchemaError(f"expected a subclass of FeatureSchema, got {schema!r}")


def _check_range(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
