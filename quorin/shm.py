"""Segments and the registry that names them."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from quorin.engine.checks.stored import store_checks
from quorin.engine.format.name import is_same_line
from quorin.engine.memory.access import SHM_GROUP_VARIABLE, resolve_group
from quorin.engine.memory.file import SHM_DIR, SHM_DIR_VARIABLE, default_shm_dir
from quorin.engine.memory.generations import create_successor, first_generation, first_heap_bytes, first_sizes
from quorin.engine.memory.kept import DEFAULT_PINNED_GENERATIONS, Limits
from quorin.engine.memory.lineage import attach_if_there, attach_newest, unlink_line
from quorin.engine.memory.lock import FileLock
from quorin.engine.memory.node import Node
from quorin.engine.memory.pinned import Generation, check_pin, generations, pin_generation
from quorin.engine.memory.publishing import make_current
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.writer import lease_held
from quorin.engine.paths import absolute
from quorin.engine.repartition.holding import Holding
from quorin.errors import (
    CorruptSegmentError,
    GenerationNotFoundError,
    PinLimitError,
    QuorinError,
    SchemaError,
    SchemaMismatchError,
    SegmentConflictError,
    SegmentNotFoundError,
)
from quorin.schema import FeatureSchema, Schema, schema_to_json

if TYPE_CHECKING:
    from quorin.engine.backend.protocols import Beginnings
    from quorin.engine.memory.generations import Sizes
    from quorin.engine.memory.view import SegmentView

__all__ = [
    "SHM_DIR",
    "SHM_DIR_VARIABLE",
    "SHM_GROUP_VARIABLE",
    "CorruptSegmentError",
    "Generation",
    "GenerationNotFoundError",
    "PinLimitError",
    "SchemaCRCMismatchError",
    "SchemaMismatchError",
    "Segment",
    "SegmentConflictError",
    "SegmentNotFoundError",
    "SegmentRegistry",
    "check_pin",
    "default_shm_dir",
]

SchemaCRCMismatchError = SchemaMismatchError


class SegmentRegistry(Holding):
    """Creates, finds and removes the segments of one node, the processes that share a ``shm_dir``.

    ``connection`` is the control plane: a ``redis.Redis`` or ``redis.RedisCluster``, a URL (``redis://``, ``rediss://``,
    ``unix://``, ``redis://…?cluster=true``, ``redis+sentinel://``), or a directory path for the embedded one. A server
    may be away, once the node has met the deployment. Segment files are in ``shm_dir``, by default the environment
    variable ``QUORIN_SHM_DIR``, else ``/dev/shm``; on a disk they survive a reboot. Relative paths are made absolute.

    Only the user that creates a segment reads and writes it, unless ``shm_group``, a group's name or a gid (by default
    the environment variable ``QUORIN_SHM_GROUP``, else none), lets members of a group read it: mode 0640. Segments that
    this registry opens for writing get the group too, and each generation inherits it. The attribute is the gid.

    After a replacement the old generation is kept for going back: ``keep_generations`` says how many of a schema are
    (by default one after a replacement and none after an upgrade), and ``keep_bytes`` how many bytes those of all
    schemas may take together. They apply to what this registry's segments replace; where there is no room for rows,
    kept generations go first. At most ``max_pinned`` generations of a schema can be pinned at a time.

    ``partitions`` is the deployment's number of partitions, to be checked, as for :class:`quorin.wal.WALProducer`.
    ``held`` says which of them new segments hold, as numbers or a text such as ``"0-7"``; by default all.

    A pickled registry has its connection, with a Redis password in plain text, and needs the same ``shm_dir``.
    """

    def __init__(
        self,
        connection: Any,
        *,
        shm_dir: str | os.PathLike[str] | None = None,
        shm_group: str | int | None = None,
        namespace: str = "quorin",
        keep_generations: int | None = None,
        keep_bytes: int | None = None,
        max_pinned: int = DEFAULT_PINNED_GENERATIONS,
        partitions: int | None = None,
        held: frozenset[int] | str | None = None,
    ) -> None:
        from quorin.engine.backend import connect

        self.held = held
        self.limits = Limits(keep_generations, keep_bytes, max_pinned)
        self.shm_dir = absolute(default_shm_dir() if shm_dir is None else shm_dir)
        if not self.shm_dir.is_dir():
            raise SegmentNotFoundError(f"shm_dir {str(self.shm_dir)!r} is not a directory")
        self.shm_group = resolve_group(shm_group)
        self.backend = connect(connection, namespace=namespace, must_answer=False, partitions=partitions)
        self.node = Node(self.shm_dir, self.backend, self.shm_group)
        self.node.check_reachable()
        self._writable_segments: weakref.WeakSet[Segment] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_writable_segments"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _writable_segments=weakref.WeakSet())

    def __repr__(self) -> str:
        return f"<SegmentRegistry {self.backend.address}, segments in {self.shm_dir}>"

    def current_name(self, schema_name: str) -> str | None:
        """This node's segment for a schema of this name, whatever its fields; None if its file is gone."""
        view = attach_if_there(self.shm_dir, self.node.current(schema_name))
        return None if view is None else view.name

    def vacancy(self, schema_name: str) -> str | None:
        """The ``replacing`` argument of :meth:`publish` for a schema without a current segment: the name of a segment
        whose file is gone, or None. Call it before you build a segment; then :meth:`publish` detects one that became
        current meanwhile.

        :raises SegmentConflictError: if the schema has a current segment.
        """
        name = self.node.current(schema_name)
        if attach_if_there(self.shm_dir, name) is not None:
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
        sizes = first_sizes(schema, capacity, max_id_bytes, prefault_rows)
        return _create_current(self, schema, sizes) if set_current else _first(self, schema, sizes)

    def publish(
        self, segment: Segment, *, replacing: str | None, beginning: Beginnings = None, restores: bool = False
    ) -> None:
        """Make a segment the current one of its schema on this node.

        ``replacing`` is the name that :meth:`vacancy` returned, or that was current, before the caller began to build
        the segment. If that segment still exists its file is removed, which tells readers and writers that have it open
        that it is no longer current. If publishing fails, ``segment`` is discarded. The control plane gets the schema,
        unless it has a later version, to which a consumer then upgrades the segment. With ``restores`` it must not have
        dropped it, or replaced it by another. ``beginning`` is where the segment's rows begin in the log,
        or in that of each partition.

        :raises SegmentConflictError: if another segment than ``replacing`` is current; that one stays.
        :raises WriterLeaseHeldError: if another process writes to the segment that would be replaced.
        :raises ConnectionFailedError: if the control plane is away.
        """
        schema_name, control = segment.schema.__name__, self.backend.control
        previous = attach_if_there(self.shm_dir, replacing, writable=True)
        try:
            if previous is None:
                make_current(self.node, control, segment, replacing, beginning, restores=restores)
                return
            with self.adopt(previous) as replaced:
                # While its lease is held, no other process writes to it, discards it, or flips to a next generation.
                view = replaced.writing_view()
                make_current(self.node, control, segment, replacing, beginning, restores=restores)
                unlink_line(view)
        except QuorinError as error:
            self.discard(segment)
            if isinstance(error, SegmentNotFoundError):
                raise SegmentConflictError(f"the segment of {schema_name!r} was removed at the same time") from error
            raise

    def create_schema(self, schema: Schema, beginning: Beginnings) -> bool:
        """Store a schema in the control plane, whose rows begin at ``beginning``; False if it has one of this name."""
        control = self.backend.control
        is_new = control.swap_schema(schema.__name__, schema_to_json(schema), expected=None, beginning=beginning)
        if is_new:
            store_checks(control, schema)
        return is_new

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
                heap_bytes=first_heap_bytes(schema, capacity),
            )
        )

    def open_current(self, schema: Schema, *, read_only: bool = True, pin: int | str | None = None) -> Segment:
        """The current segment of a schema.

        A segment of a newer version is read through ``schema``: fields match by name, a dropped field reads as null, a
        widened one as it is stored.

        With ``pin`` reads stay with one generation, as after :meth:`Segment.pin`: the one of this number, the newest of
        a version of the schema (``"v3"``), or the present one (``"current"``).

        :raises SegmentNotFoundError: if there is none, or its file is gone (``/dev/shm`` is empty after a reboot).
        :raises SchemaMismatchError: if it holds an older version, or other fields.
        :raises CorruptSegmentError: if it is damaged.
        :raises GenerationNotFoundError: if there is no generation to ``pin``. :raises PinLimitError: if too many others
            are pinned. :raises ValueError: for another ``pin``, or one that is not read-only.
        """
        _check_schema(schema)
        return _open(self, schema.__name__, schema, read_only=read_only, pin=pin)

    def open_stored(self, schema_name: str, *, read_only: bool = True, pin: int | str | None = None) -> Segment:
        """The current segment of a schema of this name, or the generation to ``pin``, read through the schema that is
        stored in it. Raises as :meth:`open_current`.
        """
        return _open(self, schema_name, None, read_only=read_only, pin=pin)

    def generations(self, schema_name: str) -> list[Generation]:
        """The generations of a schema's segment that have a file on this node, newest first: the current one, those
        that are kept, and those that are pinned.

        :raises SegmentNotFoundError: if the schema has no current segment.
        """
        return generations(self.shm_dir, attach_newest(self.shm_dir, _named(self, schema_name), None, writable=False))

    def adopt(self, view: SegmentView) -> Segment:
        """A segment of a file in :attr:`shm_dir`, open for writing; nothing has to point to it."""
        self.node.share(view.path)
        segment = Segment(view, self.node, read_only=False, limits=self.limits)
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
            unlink_line(view)
            segment.close()
        finally:
            if lease is not None:
                lease.release()


def _named(registry: SegmentRegistry, schema_name: str) -> str:
    name = registry.node.current(schema_name)
    if name is None:
        raise SegmentNotFoundError(
            f"no segment is current for schema {schema_name!r} of {registry.backend.address} in {registry.shm_dir}"
        )
    return name


def _open(
    registry: SegmentRegistry, schema_name: str, schema: Schema | None, *, read_only: bool, pin: int | str | None
) -> Segment:
    name, held = _named(registry, schema_name), None
    if pin is None:
        view = attach_newest(registry.shm_dir, name, schema, writable=not read_only)
    elif read_only:
        view, held = pin_generation(registry.shm_dir, name, schema, pin, registry.limits)
    else:
        raise ValueError(f"pin {pin!r}: only a segment that is open read-only can be pinned")
    if not read_only:
        return registry.adopt(view)
    return Segment(view, registry.node, read_only=True, limits=registry.limits, pin=held)


def _first(registry: SegmentRegistry, schema: Schema, sizes: Sizes) -> Segment:
    """A new, empty segment in a line of its own; not current."""
    identity, group = registry.node.identity, registry.shm_group
    return registry.adopt(first_generation(registry.shm_dir, schema, identity, group, registry.partitioning, sizes))


def _create_current(registry: SegmentRegistry, schema: Schema, sizes: Sizes) -> Segment:
    while True:
        name = registry.node.current(schema.__name__)
        previous = attach_if_there(registry.shm_dir, name, writable=True)
        if previous is None:
            segment = _first(registry, schema, sizes)
            registry.publish(segment, replacing=name)
            return segment
        with suppress(SegmentNotFoundError):  # It was discarded this moment.
            return _replace(registry, previous, schema, sizes)


def _replace(registry: SegmentRegistry, previous: SegmentView, schema: Schema, sizes: Sizes) -> Segment:
    """Replace a segment by a new, empty one; a writer that the registry opened releases its lease."""
    registry.release_lease(previous.name)
    with registry.adopt(previous) as segment:
        segment.acquire_writer_lease()
        # A schema in the control plane that differs from its segment's is a pending upgrade. Under the lease, no
        # consumer can apply it before the segment of this schema is in force.
        registry.backend.control.put_schema(schema.__name__, schema_to_json(schema))
        store_checks(registry.backend.control, schema)
        partitioning = registry.partitioning
        segment.replace(create_successor(segment.current_view(), schema, partitioning=partitioning, **sizes))
        return registry.adopt(segment.current_view())


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


def _check_schema(schema: object) -> None:
    if not (isinstance(schema, type) and issubclass(schema, FeatureSchema) and schema is not FeatureSchema):
        raise SchemaError(f"expected a subclass of FeatureSchema, got {schema!r}")
