"""One schema of a consumer and its segment: open or create it, take the lease, follow the one in force, upgrade it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from quorin.engine.memory.growth import evolve
from quorin.engine.memory.view import is_same_line
from quorin.engine.rows.compatibility import can_upgrade
from quorin.errors import (
    CapacityExceededError,
    EmptyDatasetError,
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
    from quorin.schema import Schema

_log = get_logger(__name__)


def targets_of(given: Any) -> list[Target]:
    """One target for each schema or segment given. :raises SchemaError: for anything else, or two of one name."""
    items = [given] if isinstance(given, (type, Segment)) else list(given)
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
    """Targets for whatever schemas the control plane knows. What cannot be used is reported once, and left alone."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._reported: set[str] = set()

    def targets(self, known: list[Target], schemas: dict[str, str]) -> list[Target]:
        """The targets for the schemas (JSON by name): those known already, unless their schema was dropped or changed
        to what they cannot be upgraded to, which closes them; and new ones.
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
        """A segment could not be taken because it holds something else."""
        self._report(f"schema {target.schema.__name__!r}: {error}")

    def _report(self, problem: str) -> None:
        if problem not in self._reported:
            self._reported.add(problem)
            _log.error("schema_left_alone", problem=problem)


class Target:
    """A schema and the segment that it is applied to, once that is open."""

    def __init__(self, schema: Schema, segment: Segment | None, *, discovered: bool = False) -> None:
        self.schema = schema
        self._segment = segment
        self._given = segment is not None
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
        """What others may want to know of it."""
        return {"segment": self.opened.name, "position": self.opened.position}

    def take(
        self,
        registry: SegmentRegistry,
        new_segment: dict[str, Any],
        frozen_after_seconds: float,
        *,
        before_overtaking: Callable[[str], None],
        history: Any = None,
    ) -> None:
        """Open or create the segment and become its writer, in the place of one that gave no sign of life for so long.

        ``before_overtaking`` is called with the schema's name before a frozen writer's rows are copied: what that one
        does from then on must not take anything from the log. A segment that is created is filled from ``history``, if
        that is one that can be read.

        A segment that holds another version is taken as it is if one of the two can be upgraded to the other; what the
        control plane wishes is done by :meth:`follow_wish`.

        :raises WriterLeaseHeldError: if another process is the writer.
        :raises SchemaMismatchError: if it holds something else.
        :raises SegmentNotFoundError: if there is none, and the control plane no longer has a schema that was discovered
            there.
        """
        if not self._given:
            self.close()
            self._segment = self._open_or_create(registry, new_segment, history)
            self._check_version(registry.backend.control)
        self.opened.follows_wishes = True
        try:
            self.opened.acquire_writer_lease()
        except WriterLeaseHeldError:
            if self.opened.stats()["writer_heartbeat_age_seconds"] < frozen_after_seconds:
                raise
            before_overtaking(self.schema.__name__)
            self.opened.overtake_writer()

    def check_in_force(self, registry: SegmentRegistry, named: str | None) -> None:
        """Stop writing to a segment that readers don't find any more; ``named`` is what the control plane has now.

        A segment that this target opened is discarded, and the next :meth:`take` follows the one in force. If nothing
        is named, as after ``FLUSHALL``, the segment is published again. Another machine's segment, whose file is not
        here, changes nothing. A segment that was given may be one that was never in force.

        :raises WriterFencedError: if this target opened the segment, and another one is in force.
        :raises SegmentConflictError: the same for a segment that was given.
        """
        segment, name = self.opened, self.schema.__name__
        if named is None:
            if not (self._given or self._discovered):
                try:
                    registry.publish(segment, replacing=None)
                except SegmentConflictError as error:
                    raise WriterFencedError(str(error)) from error
            return
        if is_same_line(named, segment.name):
            self._was_in_force = True
            return
        in_force = registry.current_name(name) if self._was_in_force else None
        if in_force is None or is_same_line(in_force, segment.name):
            return
        text = f"segment {segment.name!r} is no longer in force: {in_force!r} is current for schema {name!r}"
        if self._given:
            raise SegmentConflictError(text)
        registry.discard(segment)
        raise WriterFencedError(text)

    def can_become(self, text: str | None) -> bool:
        """Whether a schema in JSON is this one, or one that it can be upgraded to."""
        try:
            schema = None if text is None else schema_from_json(text)
        except SchemaError:
            return False
        return schema is not None and (schema_to_json(self.schema) == text or can_upgrade(self.schema, schema)[0])

    def follow_wish(self, control: ControlPlane, schemas: dict[str, str]) -> None:
        """Upgrade the segment if the control plane (JSON by name) wishes for a newer version; the lease is held.

        If it still speaks of an older version than the segment holds, it is told.

        :raises WriterFencedError: if another process has taken the segment over.
        """
        name, segment = self.schema.__name__, self.opened
        self.schema = segment.writing_view().stored
        held, text = schema_to_json(self.schema), schemas.get(name)
        if text is None or text == held:
            return
        try:
            wished = schema_from_json(text)
            if can_upgrade(wished, self.schema)[0]:
                control.swap_schema(name, held, expected=text)
            elif can_upgrade(self.schema, wished)[0]:
                evolve(segment, wished, still_wanted=lambda: control.schemas().get(name) == text)
                self.schema = segment.writing_view().stored
        except (SchemaError, CapacityExceededError) as error:
            if self._reported != text:
                self._reported = text
                _log.error("schema_not_upgraded", schema=name, error=str(error))

    def _check_version(self, control: ControlPlane) -> None:
        stored, asked = self.opened.current_view().stored, self.schema
        if schema_to_json(stored) == schema_to_json(asked) or can_upgrade(asked, stored)[0]:
            self.schema = stored
        elif not can_upgrade(stored, asked)[0] or control.schemas().get(asked.__name__) != schema_to_json(asked):
            raise SchemaMismatchError(
                f"segment {self.opened.name!r} holds version {stored.version} of {stored.__name__!r}, asked for "
                f"version {asked.version}: upgrade it first, if the fields allow it"
            )

    def _open_or_create(self, registry: SegmentRegistry, new_segment: dict[str, Any], history: Any) -> Segment:
        """The segment that is in force; a new one where there is none, unless another process is quicker."""
        while True:
            with suppress(SegmentNotFoundError):
                return registry.open_stored(self.schema.__name__, read_only=False)
            with suppress(SegmentConflictError):
                return self._create(registry, new_segment, history)

    def _create(self, registry: SegmentRegistry, new_segment: dict[str, Any], history: Any) -> Segment:
        name = self.schema.__name__
        # Asked in this order: a view is removed by dropping its schema first, and then its segment.
        lost = registry.vacancy(name)
        wished = registry.backend.control.schemas().get(name)
        if wished is None and self._discovered:
            raise SegmentNotFoundError(f"the schema {name!r} was dropped from the control plane")
        if wished is not None and self.can_become(wished):
            self.schema = schema_from_json(wished)
        segment = self._hydrated(registry, new_segment, history)
        if segment is None:
            sizes = {key: new_segment[key] for key in ("capacity", "max_id_bytes")}
            segment = registry.create(self.schema, set_current=False, **sizes)
        registry.publish(segment, replacing=lost)
        _log.info("segment_created", schema=name, segment=segment.name, replaces_lost=lost, rows=len(segment))
        return segment

    def _hydrated(self, registry: SegmentRegistry, new_segment: dict[str, Any], history: Any) -> Segment | None:
        """A segment with what the history has; None if it has nothing, or cannot be read."""
        if history is None:
            return None
        from quorin.hydration import build_segment
        from quorin.offline import ParquetDatasetStore

        if not isinstance(history, ParquetDatasetStore):
            return None
        options = {name: value for name, value in new_segment.items() if name != "capacity"}
        try:
            built, _ = build_segment(self.schema, history, registry, least_capacity=new_segment["capacity"], **options)
        except EmptyDatasetError:
            return None
        return built

    def release(self) -> None:
        """Stop being the writer."""
        if self._segment is not None and self._segment.holds_writer_lease:
            self._segment.release_writer_lease()

    def close(self) -> None:
        """Close the segment if this target opened it."""
        if self._segment is not None and not self._given:
            self._segment.close()
            self._segment = None
