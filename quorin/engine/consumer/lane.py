"""One log and what a consumer does with it: anchor, read, apply, flush and trim.

A deployment with several partitions has a log for each. Any thread may make a lane's calls to its log; all else is
done by the thread that applies.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from quorin.engine.consumer.apply import Applier
from quorin.engine.consumer.cursor import LogCursor
from quorin.engine.consumer.historian import Historian
from quorin.engine.consumer.plan import back_off
from quorin.engine.consumer.trimming import Covered, Trimming
from quorin.engine.memory.pauses import Pauses

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.backend import Bounds, Fence, Log, ReadResult, Tail
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.engine.consumer.loads import Loads
    from quorin.engine.consumer.ownership import Ownership
    from quorin.engine.consumer.target import Target
    from quorin.shm import SegmentRegistry


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """What all lanes of a consumer have in common. They take pauses together, or they would take as many times more."""

    role: str
    trims: bool
    discovers: bool
    batch_entries: int
    node_timeout_seconds: float
    pauses: Pauses = field(default_factory=Pauses)


class Seen(NamedTuple):
    """A log, and whether this consumer is its historian, at one moment."""

    fence: Fence | None
    identity: int
    bounds: Bounds


class Lane:
    """One log of a consumer, whose segments are those of ``ownership``. ``partition`` None is the only log there is.

    Each lane fails alone: while its log is unreachable the others go on.
    """

    def __init__(
        self,
        log: Log,
        partition: int | None,
        history: OfflineWriter | None,
        registry: SegmentRegistry,
        ownership: Ownership,
        loads: Loads,
        settings: LaneSettings,
    ) -> None:
        self.partition = partition
        self.must_look = False
        """Whether the log has to be compared with the segments before it is read on."""
        self.closed_end: int | None = None
        """The last position of the log, if it was closed when it was last looked at: the deployment grows."""
        self.failures = 0
        self.retry_at = 0.0
        self._ownership = ownership
        self.log = log
        self.historian = Historian(
            log, registry.node, history, role=settings.role, trims=settings.trims, discovers=settings.discovers
        )
        self._loads = loads
        loads.add(partition, log, self.historian)
        self.cursor = LogCursor(
            log,
            self.historian,
            loads,
            partition=partition,
            batch_entries=settings.batch_entries,
            reads_all=settings.trims,
        )
        self.applier = Applier(log, registry.backend.control, self.historian, partition, settings.pauses)
        timeout = settings.node_timeout_seconds if settings.trims else None
        self.trimming = Trimming(log, self.historian, ownership, registry, timeout, partition)

    def follows(self, target: Target) -> bool:
        """Whether a target is anchored to the log, or is about to be."""
        return self.must_look or self.cursor.has(target)

    def check(self) -> int:
        """Compare the log with the segments, and anchor those that do not follow it; returns its last position.

        :raises WriterFencedError: if a segment was overtaken.
        """
        seen = self.look_call()()
        self.saw(seen)
        return seen.bounds.last

    def look_call(self) -> Callable[[], Seen]:
        """A call that sees the log as it is."""
        state = self.cursor.look_call(self._ownership.owned())
        acquired = self.historian.acquire_call(self._ownership.owns_all_schemas)
        # In this order: what a former historian has trimmed is seen.
        return lambda: Seen(acquired(), *state())

    def saw(self, seen: Seen) -> None:
        """Anchor the segments that do not follow the log as it was seen."""
        is_anew = self.historian.set_fence(seen.fence)
        self.cursor.anchor(self._ownership.owned(), seen.identity, seen.bounds, anew=is_anew)
        self.must_look = False
        self.closed_end = seen.bounds.last if seen.bounds.is_closed else None

    @property
    def is_at_end(self) -> bool:
        """Whether everything that the log will ever have is applied."""
        return self.closed_end is not None and self.cursor.lowest >= self.closed_end

    def has_all_for(self, targets: list[Target]) -> bool:
        """Whether the log, as it is now, is closed, and these segments have all of it.

        :raises ConnectionFailedError: if it is unreachable.
        """
        if self.must_look or not all(self.cursor.has(target) for target in targets):
            return False
        bounds = self.log.bounds()
        # A log that ends before what was read of it has lost that, which the next look notices.
        return bounds.is_closed and bounds.last == self.cursor.lowest

    def version(self) -> Any:
        """Differs from an earlier one if segments came, went or were anchored anew, or if the position moved."""
        return [target.schema.__name__ for target in self._ownership.owned()], dict(self.cursor.positions.after)

    def apply(self, found: ReadResult, *, stages: bool) -> tuple[int, bool]:
        """Apply what was read of the log to the owned segments, and publish the position in them.

        Returns the number of rows that changed a segment, and whether the position is new. With ``stages`` rows of
        loads that are open are staged.

        :raises WriterFencedError: if a segment was overtaken. :raises ConnectionFailedError: if a log or the control
            plane is unreachable.
        """
        start = self.cursor.lowest
        if found.lost_tail or self.applier.sees_new_versions(found.entries):
            # A segment of an older version is upgraded first: applied to it, the entry would lose its new fields.
            self._ownership.renew()
            self.check()
            if self.cursor.lowest != start:  # Anchored anew: what was read is not all behind that.
                return 0, False
        with ExitStack() as held:
            for target in self._ownership.owned():
                held.enter_context(target.opened.writing)
            # A lease may have been lost while the read waited. From here on none is: another owner in this process
            # waits for ``writing``. So rows and position go into the same segment.
            owned = self._ownership.owned()
            targets = {target.schema.__name__: target for target in owned}
            applied = 0
            for entries, mark in self._loads.between_marks(found.entries, targets):
                applied += self.applier.apply(entries, targets, self.cursor.positions)
                if mark is not None:
                    self._loads.apply(mark, self.partition, targets, self.cursor.positions)
            # The position follows the rows. A crash in between applies them again; the other order would lose them.
            is_new = self.cursor.advance(found.through, owned)
            self.cursor.confirm(found, owned)
        self._loads.stage(found.entries if stages else [], self.partition, self._ownership.owned())
        return applied, is_new

    def covered(self) -> Covered:
        """What a flush that begins now covers."""
        owned = [target.schema for target in self._ownership.owned() if self.cursor.has(target)]
        return Covered(
            self.cursor.identity, self.cursor.lowest, self.historian.fence, dict(self.applier.appended), owned
        )

    def apply_tail(self, tail: Tail) -> int | None:
        """Apply what an append saw of the log, if that is all there is to apply; else return None. Not with a history,
        which needs a look at the log.
        """
        return self.applier.apply_tail(tail, self._ownership.targets) if self.historian.offline is None else None

    def trim(self, covered: Covered) -> None:
        """Trim the log behind what a flush covered. :raises ConnectionFailedError: if it is unreachable.

        :raises WriterFencedError: if a segment was overtaken; nothing is trimmed.
        """
        for schema, last in covered.durable.items():
            if self.applier.appended.get(schema) == last:
                del self.applier.appended[schema]
        self.trimming.trim(covered, self.covered())

    def failed(self, now: float) -> float:
        """The log was unreachable. Returns the seconds until the next try, which looks first."""
        delay = back_off(self.failures)
        self.failures += 1
        self.retry_at, self.must_look, self.closed_end = now + delay, True, None
        return delay

    def succeeded(self) -> None:
        """The log was reached."""
        self.failures = 0
