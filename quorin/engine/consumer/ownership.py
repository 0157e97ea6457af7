"""Which segments a consumer writes to: discover, open or create, lease and claim them, and notice a lost one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from quorin.engine.bootstrap.pace import StoppedError
from quorin.engine.consumer.dropped_schemas import DroppedSchemas
from quorin.engine.consumer.target import Discovery, targets_of
from quorin.engine.repartition.node import KnownGrowth
from quorin.errors import SchemaMismatchError, SegmentNotFoundError, WriterLeaseHeldError
from quorin.logging import get_logger

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Container, Iterable

    from quorin.engine.consumer.target import BuildSegment, Target
    from quorin.engine.format.partition import Partitioning
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

_log = get_logger(__name__)


class Ownership:
    """The targets of one consumer, and which of them it is the writer of.

    ``schemas_or_segments`` None follows the control plane's schemas. ``before_overtaking`` is called before a
    frozen writer is overtaken, ``show_life`` now and then while a segment is built. ``build`` makes segments that the
    node lacks; one that is being built when ``stopping`` is set is given up.
    """

    def __init__(
        self,
        schemas_or_segments: Iterable[Schema | Segment] | Schema | Segment | None,
        registry: SegmentRegistry,
        build: Callable[..., Segment],
        *,
        before_overtaking: Callable[[], None],
        show_life: Callable[[], None],
        frozen_after_seconds: float,
        stopping: threading.Event,
    ) -> None:
        self._discovery = Discovery() if schemas_or_segments is None else None
        self.targets = [] if schemas_or_segments is None else targets_of(schemas_or_segments)
        self._registry = registry
        self._control = registry.backend.control
        self._dropped = DroppedSchemas(registry)
        self._growth = KnownGrowth(registry.backend, registry.node)
        self._before_overtaking = before_overtaking
        self._show_life = show_life
        self._frozen_after_seconds = frozen_after_seconds
        self._build: BuildSegment = partial(build, progress=self._heartbeat)
        self._stopping = stopping
        self.partition_count: int | None = None
        """What the logs that are read have; a segment of more partitions has applied them all."""

    @property
    def discovers(self) -> bool:
        """Whether the targets follow the control plane's schemas."""
        return self._discovery is not None

    @property
    def partitioning(self) -> Partitioning:
        """The partitions of the segments: of those that the user passed in, else of those that the registry makes."""
        own = [target.opened.partitioning for target in self.targets if target.is_passed_in]
        return own[0] if own else self._registry.partitioning

    @property
    def schema_names(self) -> set[str]:
        """The schemas of all targets, owned or not."""
        return {target.schema.__name__ for target in self.targets}

    def owned(self) -> list[Target]:
        """The targets whose writer this consumer is now. A lease can be lost between any two calls."""
        return [target for target in self.targets if target.holds_lease and self._is_of_logs(target)]

    def lowest_count(self) -> int | None:
        """The lowest number of partitions of the segments whose writer this consumer is; None if there is none."""
        return min((target.opened.partitioning.count for target in self.targets if target.holds_lease), default=None)

    def _is_of_logs(self, target: Target) -> bool:
        return self.partition_count in (None, target.opened.partitioning.count)

    def reports(self) -> dict[str, dict[str, Any]]:
        """Segment and position of each owned target, by schema name."""
        return {target.schema.__name__: target.report() for target in self.owned()}

    def know_growths(self) -> None:
        """Before the number of partitions is first asked for: a control plane that was wiped gets it back.

        :raises ConnectionFailedError: if the control plane or a log cannot be reached.
        """
        if not self._growth.was_renewed:
            self._growth.renew()

    def discover(self) -> None:
        """Follow the control plane's schemas: drop the targets of dropped ones, add targets for new ones.

        The node's segments of dropped schemas are removed first (:mod:`quorin.engine.consumer.dropped_schemas`).
        """
        if self._discovery is None:
            return
        for name in self._dropped.find():
            self._end(name)
        count = len(self.targets)
        self.targets = self._discovery.targets(self.targets, self._control.schemas())
        if len(self.targets) != count:
            _log.info("schemas_followed", schemas=[target.schema.__name__ for target in self.targets])

    def _end(self, name: str) -> None:
        """Discard this node's segment of a schema that was dropped, unless another process writes to it now."""
        for target in self.targets:
            if target.schema.__name__ == name:
                target.close()
        try:
            with self._registry.open_stored(name, read_only=False) as segment:
                self._registry.discard(segment)
            _log.info("segment_discarded", schema=name, why="the schema was dropped from the control plane")
        except WriterLeaseHeldError:  # Its writer discards it, or the next look.
            return
        except SegmentNotFoundError:
            named = self._registry.node.current(name)
            if named is not None:
                self._registry.node.clear(name, expected=named)

    def take(self, target: Target, *, waiting: bool) -> None:
        """Become the writer of a target, which is opened or created first.

        :raises WriterLeaseHeldError: if another process is the writer, unless ``waiting``.
        :raises SchemaMismatchError, SegmentNotFoundError: as :meth:`Target.take`, unless the target was discovered.
        """
        try:
            target.take(
                self._registry,
                self._build,
                self._frozen_after_seconds,
                before_overtaking=self._before_overtaking,
            )
        except WriterLeaseHeldError:
            if not waiting:
                raise
        except StoppedError as error:
            _log.info("segment_given_up", schema=target.schema.__name__, why=str(error))
        except (SchemaMismatchError, SegmentNotFoundError) as error:
            # One unusable schema of the control plane must not stop the consumer of all the others.
            if self._discovery is None:
                raise
            self._discovery.refused(target, error)

    def renew(self) -> None:
        """Show that this process lives, check that its segments are still its own and in force, and apply pending
        upgrades.

        :raises WriterFencedError: if a segment was overtaken, or another is in force in its place.
        :raises SegmentConflictError: the same for a segment that the user passed in.
        """
        for target in self.owned():
            target.opened.heartbeat()
            target.opened.acquire_writer_lease()
        self._registry.node.confirm()
        if (count := self._registry.partitioning.count) > 1:
            # A control plane that was wiped gets the number back, before a producer takes it for a new deployment; the
            # growths with it, without which a new node would begin with the present number.
            self._growth.renew()
            self._registry.backend.settle_partitions(count)
        currents, schemas = self._registry.node.currents(), self._control.schemas()
        for name in self.schema_names.intersection(currents) - schemas.keys():
            self._dropped.restore(name)
        for target in self.owned():
            target.check_in_force(self._registry, currents.get(target.schema.__name__))
            target.apply_pending_upgrade(self._control, schemas)

    def owns_all_schemas(self) -> bool:
        """Whether this consumer owns every target, and every schema of the control plane is a target.

        Any thread may ask, at any time: it takes no lease.

        :raises WriterFencedError: if one of the segments was overtaken.
        """
        if len(self.owned()) < len(self.targets) or not self._control.schemas().keys() <= self.schema_names:
            return False
        # An overtaken consumer must not trim entries its successor needs.
        return all(target.opened.is_still_writer() for target in self.targets)

    def release(self, *, keep: Container[Schema] = ()) -> None:
        """Stop being the writer of all targets but those of the schemas in ``keep``."""
        for target in self.targets:
            if target.schema not in keep:
                target.release()

    def close(self) -> None:
        """Close the segments that were opened here."""
        for target in self.targets:
            target.close()

    def _heartbeat(self, *_: int) -> None:
        """Building one segment can take long; meanwhile the others must not look frozen."""
        for target in self.owned():
            target.opened.heartbeat()
        self._show_life()
        if self._stopping.is_set():
            raise StoppedError("the consumer stops")
