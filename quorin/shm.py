"""Segments and the registry that names them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quorin import format as fmt
from quorin import mapping
from quorin.errors import (
    CorruptSegmentError,
    SchemaError,
    SchemaMismatchError,
    SegmentNotFoundError,
    WriterLeaseHeldError,
)
from quorin.growth import LEAST_HEAP_BYTES, create_successor
from quorin.mapping import SHM_DIR, SHM_DIR_VARIABLE, default_shm_dir
from quorin.schema import FeatureSchema, Schema, schema_to_json
from quorin.segment import Segment, attach_newest, release_own_lease
from quorin.view import SegmentView, new_lineage, segment_name

__all__ = [
    "SHM_DIR",
    "SHM_DIR_VARIABLE",
    "CorruptSegmentError",
    "SchemaCRCMismatchError",
    "SchemaMismatchError",
    "Segment",
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
    ``QUORIN_SHM_DIR`` says, else ``/dev/shm``; on a disk they survive a reboot.
    """

    def __init__(
        self, connection: Any, *, shm_dir: str | os.PathLike[str] | None = None, namespace: str = "quorin"
    ) -> None:
        from quorin.backend import connect

        self._directory = Path(default_shm_dir() if shm_dir is None else shm_dir)
        if not self._directory.is_dir():
            raise SegmentNotFoundError(f"shm_dir {str(self._directory)!r} is no directory")
        self.backend = connect(connection, namespace=namespace)
        self._control = self.backend.control

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
        is a starting point; segments grow. Who writes fewer rows than that at once may say how many in ``rows_soon``:
        it is quicker, as the memory of others is only reserved, and mapped when they are written.

        :raises ValueError: for a number out of range. :raises SharedMemoryError: if there is no room.
        :raises WriterLeaseHeldError: if another process is writing to the segment that this one would replace.
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
        name = self._control.current(schema.__name__)
        previous = self._attach_if_there(name)
        if previous is not None:
            return self._replace(previous, schema, sizes)
        self._control.put_schema(schema.__name__, schema_to_json(schema))
        view = self._first_generation(schema, sizes)
        if not self._control.set_current(schema.__name__, view.name, expected=name):
            mapping.unlink(view.path)
            raise WriterLeaseHeldError(
                f"another process made a segment of {schema.__name__!r} current at the same time"
            )
        return self._writable(view)

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

    def _open(self, schema_name: str, schema: Schema | None, *, read_only: bool) -> Segment:
        name = self._control.current(schema_name)
        if name is None:
            raise SegmentNotFoundError(f"no segment is current for schema {schema_name!r} at {self.backend.address}")
        view = attach_newest(self._directory, name, schema, writable=not read_only)
        return Segment(view, self._control, read_only=read_only)

    def _writable(self, view: SegmentView) -> Segment:
        return Segment(view, self._control, read_only=False)

    def _first_generation(self, schema: Schema, sizes: dict[str, Any]) -> SegmentView:
        name, owner = segment_name(schema.__name__, new_lineage(), 1), self._control.identity()
        return SegmentView.create(self._directory, name, schema, owner=owner, **sizes)

    def _replace(self, previous: SegmentView, schema: Schema, sizes: dict[str, Any]) -> Segment:
        """Put a new, empty segment in the place of another; its writer in this process, if any, lets go of it."""
        release_own_lease(previous.name)
        with self._writable(previous) as segment:
            segment.acquire_writer_lease()
            # A schema in the control plane that its segment doesn't have is a wish to upgrade: only who holds the lease
            # may leave one there.
            self._control.put_schema(schema.__name__, schema_to_json(schema))
            segment.replace(create_successor(segment.current_view(), schema, **sizes))
            return self._writable(segment.current_view())

    def _attach_if_there(self, name: str | None) -> SegmentView | None:
        if name is None:
            return None
        try:
            return attach_newest(self._directory, name, None, writable=True)
        except (SegmentNotFoundError, CorruptSegmentError):
            return None


def _first_heap_bytes(schema: Schema, capacity: int) -> int:
    """A guess that growth corrects: short values in every variable-size field."""
    return LEAST_HEAP_BYTES + _HEAP_BYTES_A_VALUE * capacity * sum(field.is_variable for field in schema.fields)


def _check_schema(schema: object) -> None:
    if not (isinstance(schema, type) and issubclass(schema, FeatureSchema) and schema is not FeatureSchema):
        raise SchemaError(f"expected a subclass of FeatureSchema, got {schema!r}")


def _check_range(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
