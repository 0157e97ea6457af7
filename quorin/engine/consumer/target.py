"""One schema of a consumer and its segment: open or create it, take the lease, follow the one in force, upgrade it."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from quorin.engine.backend.beginnings import beginning_in, beginnings_of
from quorin.engine.format.name import is_same_line
from quorin.engine.memory.generations import next_generation
from quorin.engine.memory.growth import evolve
from quorin.engine.repartition.first import at_the_first_count, check_can_add
from quorin.engine.rows.compatibility import can_upgrade
from quorin.errors import (
    CapacityExceededError,
    QuorinError,
    SchemaError,
    SchemaMismatchError,
    SegmentConflictError,
    SegmentNotFoundError,
    WriterFencedError,
    WriterLeaseHeldError,
)
from quorin.logging import get_logger
from quorin.schema import FeatureSchema, schema_from_json, schema_to_json
from quorin.shm import Segment, SegmentRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.backend import ControlPlane
    from quorin.engine.backend.protocols import Beginnings
    from quorin.schema import Schema

_log = get_logger(__name__)


def targets_of(schemas_or_segments: Any) -> list[Target]:
    """One target for each schema or segment. :raises SchemaError: for anything else, or two of one name."""
    is_one = isinstance(schemas_or_segments, (type, Segment))
    items = [schemas_or_segments] if is_one else list(schemas_or_segments)
    targets = []
    for item in items:
        if isinstance(item, Segment):
            targets.append(Target(item.schema, item))
        elif isinstance(item, type) and issubclass(item, FeatureSchema) and item is not FeatureSchema:
            targets.append(Target(item, None))
        else:
            raise SchemaError(f"expected schemas or segments, got {item!r}")
    names = [target.schema.__name__ for target in targets]
    if not names or len(set(names)) != len(names):
        raise SchemaError(f"expected one schema or segment of each name, got {names}")
    return targets


class Discovery:
    """Targets for the schemas of the control plane. An unusable schema is reported once, and left alone."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._reported: set[str] = set()

    def targets(self, known: list[Target], schemas: dict[str, str]) -> list[Target]:
        """The targets for the schemas (JSON by name): ``known`` ones and new ones. A known target is closed if its
        schema was dropped, or changed to a version that its segment cannot be upgraded to.
        """
        kept = []
        for target in known:
            name = target.schema.__name__
            if self._texts.get(name) == schemas.get(name) or target.can_become(schemas.get(name)):
                kept.append(target)
                self._texts[name] = schemas[name]
            else:
                target.close()
                self._texts.pop(name, None)
        for name, text in schemas.items():
            if name not in self._texts:
                try:
                    kept.append(Target(schema_from_json(text), None, discovered=True))
                    self._texts[name] = text
                except (QuorinError, ValueError, TypeError, KeyError) as error:
                    self._report(f"schema {name!r} of the control plane: {error}")
        return kept

    def refused(self, target: Target, error: Exception) -> None:
        """Report a segment that was not taken, because it holds something else."""
        self._report(f"schema {target.schema.__name__!r}: {error}")

    def _report(self, problem: str) -> None:
        if problem not in self._reported:
            self._reported.add(problem)
            _log.error("schema_left_alone", problem=problem)


class BuildSegment(Protocol):
    """Builds a segment for a node that has none, as :func:`quorin.hydration.rebuild_segment`."""

    def __call__(self, schema: Schema, *, beginning: Beginnings) -> Segment:
        """The segment, open for writing; nothing points to it yet."""


class Target:
    """A schema and the segment that it is applied to, once that is open."""

    def __init__(self, schema: Schema, segment: Segment | None, *, discovered: bool = False) -> None:
        self.schema = schema
        self._segment = segment
        self.is_passed_in = segment is not None
        self._discovered = discovered
        self._was_in_force = segment is None
        self._reported = ""

    @property
    def opened(self) -> Segment:
        """The segment; :meth:`take` has opened it."""
        if self._segment is None:
            raise SegmentNotFoundError(f"the segment of {self.schema.__name__!r} is not open")
        return self._segment

    @property
    def holds_lease(self) -> bool:
        """Whether this process is the segment's writer, through this target."""
        return self._segment is not None and self._segment.holds_writer_lease

    def report(self) -> dict[str, Any]:
        """The segment's name, version, position and lag, for this process's announcement; no lag if it is unknown. Of
        several partitions also the position and the lag of each that is held.
        """
        segment = self.opened
        lag = segment.confirmed_age_seconds()
        report = {
            "segment": segment.name,
            "version": segment.stored_schema.version,
            "position": segment.position,
            "lag_seconds": _finite(lag),
        }
        if segment.partitioning.count > 1:
            report["partitions"] = {
                part.partition: {"position": part.position, "lag_seconds": _finite(part.confirmed_age_seconds())}
                for part in segment.parts()
            }
        return report

    def take(
        self,
        registry: SegmentRegistry,
        build: BuildSegment,
        frozen_after_seconds: float,
        *,
        before_overtaking: Callable[[], None],
    ) -> None:
        """Open or create the segment and become its writer. A writer that gave no heartbeat for
        ``frozen_after_seconds`` is overtaken.

        ``before_overtaking`` is called before a frozen writer's rows are copied: from then on that writer must not trim
        the log. ``build`` makes the segment if the node has none.

        A segment of another version is taken as it is, if one of the two versions can be upgraded to the other;
        :meth:`apply_pending_upgrade` does the rest.

        :raises WriterLeaseHeldError: if another process is the writer.
        :raises SchemaMismatchError: if the segment holds something else.
        :raises SegmentNotFoundError: if there is no segment, and a discovered schema is no longer in the control plane.
        :raises PartitionCountError: if the segment would need partitions that it cannot be given.
        """
        if not self.is_passed_in:
            self.close()
            self._segment = self._open_or_create(registry, build)
            self._check_version(registry.backend.control)
        try:
            self.opened.acquire_writer_lease(applies_upgrades=True)
        except WriterLeaseHeldError:
            if self.opened.stats()["writer_heartbeat_age_seconds"] < frozen_after_seconds:
                raise
            before_overtaking()
            self.opened.overtake_writer()
        here, held = self.opened.partitioning, registry.partitioning
        # A segment of another number of partitions has to apply closed logs first, or waits for others that do.
        if not self.is_passed_in and here != held and here.count == held.count:
            check_can_add(registry.backend, self.opened, held)
            self._hold(registry)

    def _hold(self, registry: SegmentRegistry) -> None:
        """Carry the rows over to a segment of the partitions that the node holds now."""
        segment, held = self.opened, registry.partitioning
        with segment.writing:
            view = segment.writing_view()
            before = view.partitioning
            segment.replace(next_generation(view, view.stored, capacity=view.layout.capacity, partitioning=held))
            beginnings = registry.node.state().beginning_of(self.schema.__name__)
            for partition in held.held - before.held:
                if (begins := beginning_in(beginnings, partition)) is not None:
                    segment.part(partition).commit_position(begins.position, begins.log_identity)
        _log.info("partitions_changed", segment=segment.name, before=str(before), now=str(held), rows=len(segment))

    def check_in_force(self, registry: SegmentRegistry, named: str | None) -> None:
        """Stop writing to a segment that is no longer in force; ``named`` is the node's current segment.

        A segment that this target opened is discarded, and the next :meth:`take` opens the one in force. If none is
        current, because the node's file was removed, the segment is published again. If its own file is gone, the next
        :meth:`take` makes one. A segment that the user passed in may never have been in force.

        :raises WriterFencedError: if this target opened the segment, and it is not in force.
        :raises SegmentConflictError: the same for a segment that the user passed in.
        """
        segment, name = self.opened, self.schema.__name__
        if not segment.current_view().path.exists():
            error = self._out_of_force(f"its file was removed from {registry.shm_dir}")
            self.close()
            raise error
        if named is None:
            self._publish_again(registry)
            return
        if is_same_line(named, segment.name):
            self._was_in_force = True
            return
        in_force = registry.current_name(name) if self._was_in_force else None
        if in_force is None or is_same_line(in_force, segment.name):
            return
        error = self._out_of_force(f"{in_force!r} is current for schema {name!r}")
        if not self.is_passed_in:
            registry.discard(segment)
            self.close()
        raise error

    def _publish_again(self, registry: SegmentRegistry) -> None:
        control, name = registry.backend.control, self.schema.__name__
        if self.is_passed_in or (self._discovered and name not in control.schemas()):
            return
        try:
            registry.publish(self.opened, replacing=None, beginning=beginnings_of(registry.backend, name))
        except SegmentConflictError as error:
            raise WriterFencedError(str(error)) from error

    def _out_of_force(self, reason: str) -> QuorinError:
        text = f"segment {self.opened.name!r} is no longer in force: {reason}"
        return SegmentConflictError(text) if self.is_passed_in else WriterFencedError(text)

    def can_become(self, text: str | None) -> bool:
        """Whether a schema in JSON is this one, or one that it can be upgraded to."""
        try:
            schema = None if text is None else schema_from_json(text)
        except SchemaError:
            return False
        return schema is not None and (schema_to_json(self.schema) == text or can_upgrade(self.schema, schema)[0])

    def apply_pending_upgrade(self, control: ControlPlane, schemas: dict[str, str]) -> None:
        """Upgrade the segment if ``schemas`` (JSON by name) has a newer version; the lease is held.

        If the control plane has an older version than the segment, it gets the segment's.

        :raises WriterFencedError: if another process has taken the segment over.
        """
        name, segment = self.schema.__name__, self.opened
        self.schema = segment.writing_view().stored
        held, text = schema_to_json(self.schema), schemas.get(name)
        if text is None or text == held:
            return
        try:
            pending = schema_from_json(text)
            if can_upgrade(pending, self.schema)[0]:
                # For instance, an upgrade was withdrawn after its writer had flipped.
                control.swap_schema(name, held, expected=text)
            elif can_upgrade(self.schema, pending)[0]:
                evolve(segment, pending, still_wanted=lambda: control.schemas().get(name) == text)
                self.schema = segment.writing_view().stored
        except (SchemaError, CapacityExceededError) as error:
            if self._reported != text:
                self._reported = text
                _log.error("schema_not_upgraded", schema=name, error=str(error))

    def _check_version(self, control: ControlPlane) -> None:
        stored, requested = self.opened.current_view().stored, self.schema
        if schema_to_json(stored) == schema_to_json(requested) or can_upgrade(requested, stored)[0]:
            self.schema = stored
        elif not can_upgrade(stored, requested)[0] or control.schemas().get(requested.__name__) != schema_to_json(
            requested
        ):
            raise SchemaMismatchError(
                f"segment {self.opened.name!r} holds {stored.__name__!r} version {stored.version}; version "
                f"{requested.version} was requested: upgrade the segment first, if the fields allow it"
            )

    def _open_or_create(self, registry: SegmentRegistry, build: BuildSegment) -> Segment:
        """The segment in force, or a new one if there is none and no other process is faster."""
        while True:
            with suppress(SegmentNotFoundError):
                return registry.open_stored(self.schema.__name__, read_only=False)
            with suppress(SegmentConflictError):
                return self._create(registry, build)

    def _create(self, registry: SegmentRegistry, build: BuildSegment) -> Segment:
        name, control = self.schema.__name__, registry.backend.control
        # In this order, because a view is removed by dropping its schema first, then its segment.
        lost = registry.vacancy(name)
        beginning = beginnings_of(registry.backend, name)
        text = control.schemas().get(name)
        if text is None and self._discovered:
            raise SegmentNotFoundError(f"the schema {name!r} was dropped from the control plane")
        if text is not None and self.can_become(text):
            self.schema = schema_from_json(text)
        elif self._discovered:
            raise SegmentNotFoundError(f"the control plane has another schema {name!r} by now")
        with at_the_first_count(registry, beginning):
            segment = build(self.schema, beginning=beginning)
            registry.publish(segment, replacing=lost, beginning=beginning, restores=self._discovered)
        _log.info("segment_created", schema=name, segment=segment.name, replaces_lost=lost, rows=len(segment))
        return segment

    def release(self) -> None:
        """Stop being the writer."""
        if self._segment is not None and self._segment.holds_writer_lease:
            self._segment.release_writer_lease()

    def close(self) -> None:
        """Close the segment if this target opened it."""
        if self._segment is not None and not self.is_passed_in:
            self._segment.close()
            self._segment = None


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds
