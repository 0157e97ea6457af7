"""Segments and the registry that names them."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from quorin.engine.format import segment as fmt
from quorin.engine.format.name import SegmentName, is_same_line
from quorin.engine.memory import file as mapping
from quorin.engine.memory.file import SHM_DIR, SHM_DIR_VARIABLE, default_shm_dir
from quorin.engine.memory.generations import LEAST_HEAP_BYTES, create_successor
from quorin.engine.memory.lineage import attach_newest, unlink_older_generations
from quorin.engine.memory.lock import FileLock
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.view import SegmentView
from quorin.engine.paths import absolute
from quorin.errors import (
    CorruptSegmentError,
    SchemaError,
    SchemaMismatchError,
    SegmentConflictError,
    SegmentNotFoundError,
    WriterLeaseHeldError,
)
from quorin.schema import FeatureSchema, Schema, schema_to_json

__all__ = [
    "SHM_DIR",
    "SHM_DIR_VARIABLE",
    "CorruptSegmentError",
    "SchemaCRCMismatchError",
    "SchemaMismatchError",
    "Segment",
    "SegmentConflictError",
    "SegmentNotFoundError",
    "SegmentRegistry",
    "default_shm_dir",
]

SchemaCRCMismatchError = SchemaMismatchError

_HEAP_BYTES_A_VALUE = 32


class SegmentRegistry:
    """Creates, finds and removes segments.

    ``connection`` is the control plane: a ``redis.Redis``, a URL (``redis://``, ``rediss://``, ``unix://``), or a
    directory path for the embedded one. Segment files live in ``shm_dir``, by default what the environment variable
    ``QUORIN_SHM_DIR`` says, else ``/dev/shm``; on a disk they survive a reboot. Relative paths are made absolute.

    It is pickled by its connection, for a process that has the same ``shm_dir``: a Redis password with it, in plain
    text.
    """

    def __init__(
        self, connection: Any, *, shm_dir: str | os.PathLike[str] | None = None, namespace: str = "quorin"
    ) -> None:
        from quorin.engine.backend import connect

        self._directory = absolute(default_shm_dir() if shm_dir is None else shm_dir)
        if not self._directory.is_dir():
            raise SegmentNotFoundError(f"shm_dir {str(self._directory)!r} is no directory")
        self.backend = connect(connection, namespace=namespace)
        self._control = self.backend.control
        self._writable_segments: weakref.WeakSet[Segment] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_writable_segments"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _writable_segments=weakref.WeakSet())

    def __repr__(self) -> str:
        return f"<SegmentRegistry {self.backend.address}, segments in {self._directory}>"

    @property
    def shm_dir(self) -> Path:
        """The directory of the segment files."""
        return self._directory

    def current_name(self, schema_name: str) -> str | None:
        """The segment that is in force for a schema of this name, whatever its fields; None if its file is gone."""
        view = self._attach_if_there(self._control.current(schema_name))
        return None if view is None else view.name

    def vacancy(self, schema_name: str) -> str | None:
        """The name for :meth:`publish` to replace, where no segment of a schema is in force: that of one whose file is
        gone, or None. Ask before you build a segment, so that one that comes into force meanwhile is found.

        :raises SegmentConflictError: if a segment is in force.
        """
        name = self._control.current(schema_name)
        if self._attach_if_there(name) is not None:
            raise SegmentConflictError(f"{schema_name!r} has a current segment, {name!r}, which stays as it is")
        return name

    def create(
        self,
        schema: Schema,
        *,
        capacity: int,
        max_id_bytes: int = 64,
        set_current: bool = True,
        rows_soon: int | None = None,
    ) -> Segment:
        """A new, empty segment, writable by this process, made current unless asked otherwise.

        An earlier current segment of the schema is replaced: its readers follow to the new one. ``capacity`` (entities)
        is a starting point; segments grow. The memory of ``rows_soon`` rows (default: all) is mapped at once.

        :raises ValueError: for a number out of range. :raises SharedMemoryError: if there is no room.
        :raises WriterLeaseHeldError: if another process is writing to the segment that this one would replace.
        :raises SegmentConflictError: if another process made one current at the same time, which stays.
        """
        _check_schema(schema)
        _check_range("capacity", capacity, 1, fmt.MAX_ROWS // 2)
        _check_range("max_id_bytes", max_id_bytes, 1, fmt.MAX_ID_BYTES)
        if rows_soon is not None:
            _check_range("rows_soon", rows_soon, 0, fmt.MAX_ROWS)
        sizes = {
            "capacity": capacity,
            "max_id_bytes": max_id_bytes,
            "heap_bytes": _first_heap_bytes(schema, capacity),
            "rows_soon": rows_soon,
        }
        if not set_current:
            return self._writable(self._first_generation(schema, sizes))
        while True:
            name = self._control.current(schema.__name__)
            previous = self._attach_if_there(name)
            if previous is None:
                segment = self._writable(self._first_generation(schema, sizes))
                self.publish(segment, replacing=name)
                return segment
            with suppress(SegmentNotFoundError):  # It was discarded this moment.
                return self._replace(previous, schema, sizes)

    def publish(self, segment: Segment, *, replacing: str | None) -> None:
        """Make a segment the current one of its schema, and its schema the control plane's, in one step.

        ``replacing`` is the name that :meth:`vacancy` returned, or that the control plane had, before the caller found
        that a segment is needed. A segment of that name that is still there is removed: what has no file is not in
        force, so readers and writers that have it open can tell. A segment that isn't published is discarded.

        If the process dies or loses its connection, either the segment is current or nothing has changed; its file, or
        that of the replaced one, may be left for the watchdog.

        :raises SegmentConflictError: if the control plane names another segment than ``replacing``; that one stays.
        :raises WriterLeaseHeldError: if another process writes to the segment that would be replaced.
        """
        schema_name = segment.schema.__name__
        previous = self._attach_if_there(replacing)
        try:
            if previous is None:
                self._make_current(segment, replacing)
                return
            with self._writable(previous) as replaced:
                # With its lease nobody else writes to it, discards it, or replaces it by its next generation.
                view = replaced.writing_view()
                self._make_current(segment, replacing)
                unlink_older_generations(view)
                mapping.unlink(view.path)
        except (SegmentConflictError, WriterLeaseHeldError):
            self.discard(segment)
            raise
        except SegmentNotFoundError as error:
            self.discard(segment)
            raise SegmentConflictError(f"the segment of {schema_name!r} was removed at the same time") from error

    def _make_current(self, segment: Segment, replacing: str | None) -> None:
        view = segment.current_view()
        name, text = view.stored.__name__, schema_to_json(view.stored)
        if self._control.set_current(name, view.name, expected=replacing, schema=text):
            return
        # A call whose answer was lost is repeated, and then finds what it did itself.
        named = self._control.current(name)
        if named != view.name:
            raise SegmentConflictError(
                f"another process made a segment of {name!r} current at the same time: expected {replacing!r}, "
                f"the control plane has {named!r}"
            )

    def create_successor(self, segment: Segment, schema: Schema, *, capacity: int) -> Segment:
        """A new, empty segment in the line of an existing one, for a schema of the same name; not current.

        Fill it, then ``segment.replace(successor.current_view())`` puts it in force. ``discard`` it otherwise.
        """
        _check_schema(schema)
        view = segment.current_view()
        if schema.__name__ != view.schema.__name__:
            raise SchemaMismatchError(f"{schema.__name__!r} can't succeed {view.name!r}: the names must be the same")
        return self._writable(
            create_successor(
                view,
                schema,
                capacity=capacity,
                max_id_bytes=view.layout.max_id_bytes,
                heap_bytes=_first_heap_bytes(schema, capacity),
            )
        )

    def open_current(self, schema: Schema, *, read_only: bool = True) -> Segment:
        """The current segment of a schema.

        One that holds a newer version is read through this one: fields are found by name, one that was dropped since
        reads as null, one that was widened as it is stored.

        :raises SegmentNotFoundError: if there is none, or its file is gone (``/dev/shm`` is empty after a reboot).
        :raises SchemaMismatchError: if it holds an older version, or other fields. :raises CorruptSegmentError: if
            damaged.
        """
        _check_schema(schema)
        return self._open(schema.__name__, schema, read_only=read_only)

    def open_stored(self, schema_name: str, *, read_only: bool = True) -> Segment:
        """The current segment of a schema of this name, with the version and fields that it holds.

        :raises SegmentNotFoundError, CorruptSegmentError: as :meth:`open_current`.
        """
        return self._open(schema_name, None, read_only=read_only)

    def adopt(self, view: SegmentView) -> Segment:
        """A segment file that the caller has put into :attr:`shm_dir`, open for writing; nothing points to it yet."""
        return self._writable(view)

    def close(self, segment: Segment) -> None:
        """Close a segment; its rows stay for others."""
        segment.close()

    def release_lease(self, name: str, *, of_consumers: bool = True) -> None:
        """Release the writer lease of the segment ``name`` if a :class:`Segment` that this registry opened holds it.

        With ``of_consumers=False`` a writer that applies pending upgrades itself keeps it.
        """
        for segment in list(self._writable_segments):
            if segment.holds_writer_lease and segment.name == name and (of_consumers or not segment.applies_upgrades):
                segment.release_writer_lease()

    def discard(self, segment: Segment) -> None:
        """Close a segment and remove its file; if it was current, none is current any more. Its rows are gone.

        :raises WriterLeaseHeldError: if another process writes to it. :raises WriterFencedError: if this object was its
            writer and was overtaken; nothing is removed.
        """
        lease = None
        if segment.holds_writer_lease:
            view = segment.writing_view()
        else:
            view, lease = _locked_newest(segment)
        try:
            name = view.schema.__name__
            named = self._control.current(name)
            if named is not None and is_same_line(named, view.name):  # It may name a generation before this one.
                self._control.clear_current(name, expected=named)
            unlink_older_generations(view)
            mapping.unlink(view.path)
            segment.close()
        finally:
            if lease is not None:
                lease.release()

    def _open(self, schema_name: str, schema: Schema | None, *, read_only: bool) -> Segment:
        name = self._control.current(schema_name)
        if name is None:
            raise SegmentNotFoundError(f"no segment is current for schema {schema_name!r} at {self.backend.address}")
        view = attach_newest(self._directory, name, schema, writable=not read_only)
        return Segment(view, self._control, read_only=True) if read_only else self._writable(view)

    def _writable(self, view: SegmentView) -> Segment:
        segment = Segment(view, self._control, read_only=False)
        self._writable_segments.add(segment)
        return segment

    def _first_generation(self, schema: Schema, sizes: dict[str, Any]) -> SegmentView:
        name, owner = SegmentName.first(schema.__name__), self._control.identity()
        return SegmentView.create(self._directory, name, schema, owner=owner, **sizes)

    def _replace(self, previous: SegmentView, schema: Schema, sizes: dict[str, Any]) -> Segment:
        """Put a new, empty segment in the place of another; its writer in this process, if any, lets go of it."""
        self.release_lease(previous.name)
        with self._writable(previous) as segment:
            segment.acquire_writer_lease()
            # A schema in the control plane that its segment doesn't have is a wish to upgrade: only who holds the lease
            # may leave one there.
            self._control.put_schema(schema.__name__, schema_to_json(schema))
            segment.replace(create_successor(segment.current_view(), schema, **sizes))
            return self._writable(segment.current_view())

    def _attach_if_there(self, name: str | None) -> SegmentView | None:
        if name is not None:
            with suppress(SegmentNotFoundError, CorruptSegmentError):
                return attach_newest(self._directory, name, None, writable=True)
        return None


def _locked_newest(segment: Segment) -> tuple[SegmentView, FileLock]:
    """The newest generation of a segment that this object doesn't write to, with the lock of its file."""
    while True:
        view = segment.current_view()
        lease = FileLock.try_acquire(view.path)
        if lease is None:
            raise WriterLeaseHeldError(f"segment {view.name!r} is written by process {int(view.header['writer_pid'])}")
        if view.successor_name is None:
            return view, lease
        lease.release()  # Its writer flipped between our look and the lock.


def _first_heap_bytes(schema: Schema, capacity: int) -> int:
    """A guess that growth corrects: short values in every variable-size field."""
    return LEAST_HEAP_BYTES + _HEAP_BYTES_A_VALUE * capacity * sum(field.is_variable for field in schema.fields)


def _check_schema(schema: object) -> None:
    if not (isinstance(schema, type) and issubclass(schema, FeatureSchema) and schema is not FeatureSchema):
        raise SchemaError(f"expected a subclass of FeatureSchema, got {schema!r}")


def _check_range(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
