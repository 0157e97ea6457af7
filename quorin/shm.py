"""Segments and the registry that names them."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorin.engine.format import segment as fmt
from quorin.engine.format.name import SegmentName, is_same_line
from quorin.engine.memory import file as mapping
from quorin.engine.memory.access import SHM_GROUP_VARIABLE, Access, resolve_group
from quorin.engine.memory.file import SHM_DIR, SHM_DIR_VARIABLE, default_shm_dir
from quorin.engine.memory.generations import MIN_HEAP_BYTES, create_successor
from quorin.engine.memory.lineage import attach_newest, unlink_older_generations
from quorin.engine.memory.lock import FileLock
from quorin.engine.memory.node import Node
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.view import SegmentView
from quorin.engine.memory.writer import lease_held
from quorin.engine.paths import absolute
from quorin.engine.rows.compatibility import can_upgrade
from quorin.errors import (
    CorruptSegmentError,
    QuorinError,
    SchemaError,
    SchemaMismatchError,
    SegmentConflictError,
    SegmentNotFoundError,
)
from quorin.schema import FeatureSchema, Schema, schema_from_json, schema_to_json

if TYPE_CHECKING:
    from quorin.engine.backend import Beginning, ControlPlane

__all__ = [
    "SHM_DIR",
    "SHM_DIR_VARIABLE",
    "SHM_GROUP_VARIABLE",
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

_HEAP_BYTES_PER_VALUE = 32


class SegmentRegistry:
    """Creates, finds and removes the segments of one node, the processes that share a ``shm_dir``.

    ``connection`` is the control plane: a ``redis.Redis`` or ``redis.RedisCluster``, a URL (``redis://``, ``rediss://``,
    ``unix://``, ``redis://…?cluster=true``, ``redis+sentinel://``), or a directory path for the embedded one. A server
    may be away, once the node has met the deployment. Segment files are in ``shm_dir``, by default the environment
    variable ``QUORIN_SHM_DIR``, else ``/dev/shm``; on a disk they survive a reboot. Relative paths are made absolute.

    Only the user that creates a segment reads and writes it, unless ``shm_group``, a group's name or a gid (by default
    the environment variable ``QUORIN_SHM_GROUP``, else none), lets members of a group read it: mode 0640. Segments that
    this registry opens for writing get the group too, and each generation inherits it. The attribute is the gid.

    A registry is pickled as its connection, including a Redis password in plain text, for a process that has the same
    ``shm_dir``.
    """

    def __init__(
        self,
        connection: Any,
        *,
        shm_dir: str | os.PathLike[str] | None = None,
        shm_group: str | int | None = None,
        namespace: str = "quorin",
    ) -> None:
        from quorin.engine.backend import connect

        self._directory = absolute(default_shm_dir() if shm_dir is None else shm_dir)
        if not self._directory.is_dir():
            raise SegmentNotFoundError(f"shm_dir {str(self._directory)!r} is not a directory")
        self.shm_group = resolve_group(shm_group)
        self.backend = connect(connection, namespace=namespace, must_answer=False)
        self.node = Node(self._directory, self.backend, self.shm_group)
        self.node.check_reachable()
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
        """This node's segment for a schema of this name, whatever its fields; None if its file is gone."""
        view = _attach_if_there(self._directory, self.node.current(schema_name))
        return None if view is None else view.name

    def vacancy(self, schema_name: str) -> str | None:
        """The ``replacing`` argument of :meth:`publish` for a schema without a current segment: the name of a segment
        whose file is gone, or None. Call it before you build a segment; then :meth:`publish` detects one that became
        current meanwhile.

        :raises SegmentConflictError: if the schema has a current segment.
        """
        name = self.node.current(schema_name)
        if _attach_if_there(self._directory, name) is not None:
            raise SegmentConflictError(f"{schema_name!r} has a current segment, {name!r}, which stays as it is")
        return name

    def create(
        self,
        schema: Schema,
        *,
        capacity: int,
        max_id_bytes: int = 64,
        set_current: bool = True,
        prefault_rows: int | None = None,
    ) -> Segment:
        """A new, empty segment, writable by this process, made current unless asked otherwise.

        A current segment of the schema is replaced: its readers follow to the new one, and a writer that this registry
        opened releases its lease. ``capacity`` (entities) is a starting point; segments grow. The memory of the first
        ``prefault_rows`` rows (by default all) is mapped now; that of the others is reserved, and mapped when they are
        written. A low number makes the call faster.

        :raises ValueError: for a number out of range.
        :raises SharedMemoryError: if there is no room, or this process is not a member of ``shm_group``.
        :raises WriterLeaseHeldError: if another process, or another registry of this one, has the writer lease of the
            segment that would be replaced.
        :raises SegmentConflictError: if another process made a segment current at the same time; that one stays.
        """
        _check_schema(schema)
        sizes = _sizes(schema, capacity, max_id_bytes, prefault_rows)
        if not set_current:
            return self.adopt(_first_generation(self, schema, sizes))
        while True:
            name = self.node.current(schema.__name__)
            previous = _attach_if_there(self._directory, name, writable=True)
            if previous is None:
                segment = self.adopt(_first_generation(self, schema, sizes))
                self.publish(segment, replacing=name)
                return segment
            with suppress(SegmentNotFoundError):  # It was discarded this moment.
                return self._replace(previous, schema, sizes)

    def publish(
        self, segment: Segment, *, replacing: str | None, beginning: Beginning | None = None, restores: bool = False
    ) -> None:
        """Make a segment the current one of its schema on this node.

        ``replacing`` is the name that :meth:`vacancy` returned, or that was current, before the caller began to build
        the segment. If that segment still exists its file is removed, which tells readers and writers that have it open
        that it is no longer current. If publishing fails, ``segment`` is discarded. The control plane gets the schema,
        unless it has a later version, to which a consumer then upgrades the segment. With ``restores`` it must not have
        dropped it, or replaced it by another. ``beginning`` is where the segment's rows begin in the log.

        :raises SegmentConflictError: if another segment than ``replacing`` is current; that one stays.
        :raises WriterLeaseHeldError: if another process writes to the segment that would be replaced.
        :raises ConnectionFailedError: if the control plane is away.
        """
        schema_name = segment.schema.__name__
        previous = _attach_if_there(self._directory, replacing, writable=True)
        try:
            if previous is None:
                _make_current(self, segment, replacing, beginning, restores)
                return
            with self.adopt(previous) as replaced:
                # While its lease is held, no other process writes to it, discards it, or flips to a next generation.
                view = replaced.writing_view()
                _make_current(self, segment, replacing, beginning, restores)
                unlink_older_generations(view)
                mapping.unlink(view.path)
        except QuorinError as error:
            self.discard(segment)
            if isinstance(error, SegmentNotFoundError):
                raise SegmentConflictError(f"the segment of {schema_name!r} was removed at the same time") from error
            raise

    def create_schema(self, schema: Schema, beginning: Beginning) -> bool:
        """Store a schema in the control plane, whose rows begin at ``beginning``; False if it has one of this name."""
        return self.backend.control.swap_schema(
            schema.__name__, schema_to_json(schema), expected=None, beginning=beginning
        )

    def create_successor(self, segment: Segment, schema: Schema, *, capacity: int) -> Segment:
        """A new, empty segment in the line of an existing one, for a schema of the same name; not current.

        After it is filled, ``segment.replace(successor.current_view())`` puts it in force; else ``discard`` it.
        """
        _check_schema(schema)
        view = segment.current_view()
        if schema.__name__ != view.schema.__name__:
            raise SchemaMismatchError(f"{schema.__name__!r} can't succeed {view.name!r}: the names must be the same")
        return self.adopt(
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

        A segment of a newer version is read through ``schema``: fields match by name, a dropped field reads as null, a
        widened one as it is stored.

        :raises SegmentNotFoundError: if there is none, or its file is gone (``/dev/shm`` is empty after a reboot).
        :raises SchemaMismatchError: if it holds an older version, or other fields.
        :raises CorruptSegmentError: if it is damaged.
        """
        _check_schema(schema)
        return self._open(schema.__name__, schema, read_only=read_only)

    def open_stored(self, schema_name: str, *, read_only: bool = True) -> Segment:
        """The current segment of a schema of this name, read through the schema that is stored in it.

        :raises SegmentNotFoundError, CorruptSegmentError: as :meth:`open_current`.
        """
        return self._open(schema_name, None, read_only=read_only)

    def adopt(self, view: SegmentView) -> Segment:
        """A segment of a file in :attr:`shm_dir`, open for writing; nothing has to point to it."""
        self.node.share(view.path)
        segment = Segment(view, self.node, read_only=False)
        self._writable_segments.add(segment)
        return segment

    def close(self, segment: Segment) -> None:
        """Close a segment; its rows stay for others."""
        segment.close()

    def release_lease(self, name: str, *, of_consumers: bool = True) -> None:
        """Release the writer lease of the segment ``name`` if a :class:`Segment` that this registry opened holds it.

        With ``of_consumers=False``, a writer that applies pending upgrades itself keeps its lease. Leases of other
        registries, of this process too, stay: only the code that opened a segment may end its writing.
        """
        for segment in list(self._writable_segments):
            if segment.holds_writer_lease and segment.name == name and (of_consumers or not segment.applies_upgrades):
                segment.release_writer_lease()

    def discard(self, segment: Segment) -> None:
        """Close a segment and remove its file and its rows; if it was current, the schema has no current segment.

        :raises WriterLeaseHeldError: if another holder has its writer lease.
        :raises WriterFencedError: if this object was its writer and was overtaken; nothing is removed.
        """
        lease = None
        if segment.holds_writer_lease:
            view = segment.writing_view()
        else:
            view, lease = _locked_newest(segment)
        try:
            name = view.schema.__name__
            named = self.node.current(name)
            if named is not None and is_same_line(named, view.name):  # It may name a generation before this one.
                self.node.clear(name, expected=named)
            unlink_older_generations(view)
            mapping.unlink(view.path)
            segment.close()
        finally:
            if lease is not None:
                lease.release()

    def _open(self, schema_name: str, schema: Schema | None, *, read_only: bool) -> Segment:
        name = self.node.current(schema_name)
        if name is None:
            raise SegmentNotFoundError(
                f"no segment is current for schema {schema_name!r} of {self.backend.address} in {self._directory}"
            )
        view = attach_newest(self._directory, name, schema, writable=not read_only)
        return Segment(view, self.node, read_only=True) if read_only else self.adopt(view)

    def _replace(self, previous: SegmentView, schema: Schema, sizes: dict[str, Any]) -> Segment:
        """Replace a segment by a new, empty one; a writer that this registry opened releases its lease."""
        self.release_lease(previous.name)
        with self.adopt(previous) as segment:
            segment.acquire_writer_lease()
            # A schema in the control plane that differs from its segment's is a pending upgrade. Under the lease, no
            # consumer can apply it before the segment of this schema is in force.
            self.backend.control.put_schema(schema.__name__, schema_to_json(schema))
            segment.replace(create_successor(segment.current_view(), schema, **sizes))
            return self.adopt(segment.current_view())


def _locked_newest(segment: Segment) -> tuple[SegmentView, FileLock]:
    """The newest generation of a segment that this object doesn't write to, and the lock of its file."""
    while True:
        view = segment.current_view()
        lease = FileLock.try_acquire(view.path)
        if lease is None:
            raise lease_held(view)
        if view.successor_name is None:
            return view, lease
        lease.release()  # Its writer flipped before we had the lock.


def _sizes(schema: Schema, capacity: int, max_id_bytes: int, prefault_rows: int | None) -> dict[str, Any]:
    """The sizes of a new segment. :raises ValueError: for a number out of range."""
    _check_range("capacity", capacity, 1, fmt.MAX_ROWS // 2)
    _check_range("max_id_bytes", max_id_bytes, 1, fmt.MAX_ID_BYTES)
    if prefault_rows is not None:
        _check_range("prefault_rows", prefault_rows, 0, fmt.MAX_ROWS)
    sizes = {"capacity": capacity, "max_id_bytes": max_id_bytes, "heap_bytes": _first_heap_bytes(schema, capacity)}
    return {**sizes, "prefault_rows": prefault_rows}


def _attach_if_there(directory: Path, name: str | None, *, writable: bool = False) -> SegmentView | None:
    if name is None:
        return None
    try:
        return attach_newest(directory, name, None, writable=writable)
    except (SegmentNotFoundError, CorruptSegmentError):
        return None


def _first_generation(registry: SegmentRegistry, schema: Schema, sizes: dict[str, Any]) -> SegmentView:
    name, access = SegmentName.first(schema.__name__), Access.for_group(registry.shm_group)
    return SegmentView.create(registry.shm_dir, name, schema, owner=registry.node.identity, access=access, **sizes)


def _first_heap_bytes(schema: Schema, capacity: int) -> int:
    """An estimate that growth corrects: a short value in every variable-size field."""
    return MIN_HEAP_BYTES + _HEAP_BYTES_PER_VALUE * capacity * sum(field.is_variable for field in schema.fields)


def _make_current(
    registry: SegmentRegistry,
    segment: Segment,
    replacing: str | None,
    beginning: Beginning | None,
    restores: bool,
) -> None:
    view = segment.current_view()
    name, control = view.stored.__name__, registry.backend.control

    def put_schema() -> None:
        _put_schema(control, view.stored, restores=restores, beginning=beginning)

    is_current = registry.node.publish(name, view.name, expected=replacing, beginning=beginning, before=put_schema)
    if not is_current:
        raise SegmentConflictError(
            f"another process made a segment of {name!r} current at the same time: expected {replacing!r}, "
            f"found {registry.node.current(name)!r}"
        )


def _put_schema(control: ControlPlane, schema: Schema, *, restores: bool, beginning: Beginning | None) -> None:
    """Let the control plane have a schema, or keep the later version that it has.

    :raises SegmentNotFoundError: if it only ``restores`` one that the control plane may have lost, and it was dropped,
        or replaced by another.
    """
    name, text = schema.__name__, schema_to_json(schema)
    while (stored := control.schemas().get(name)) != text:
        if stored is not None and _can_become(schema, stored):
            return
        if stored is not None and restores:
            raise SegmentNotFoundError(f"the control plane has another schema {name!r} by now")
        if restores:
            if not control.restore_schema(name, text, beginning=beginning) and name in control.dropped_schemas():
                raise SegmentNotFoundError(f"the schema {name!r} was dropped from the control plane")
            continue
        if control.swap_schema(name, text, expected=stored):
            return


def _can_become(schema: Schema, text: str) -> bool:
    """Whether a schema can be upgraded to one in JSON."""
    try:
        return can_upgrade(schema, schema_from_json(text))[0]
    except SchemaError:
        return False


def _check_schema(schema: object) -> None:
    if not (isinstance(schema, type) and issubclass(schema, FeatureSchema) and schema is not FeatureSchema):
        raise SchemaError(f"expected a subclass of FeatureSchema, got {schema!r}")


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
