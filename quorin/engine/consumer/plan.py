"""The consumer's decisions, without I/O: pure functions over plain values.

:class:`quorin.wal_consumer.WALConsumer` does what :func:`next_step` decides, and records the outcome on the
:class:`Agenda`. :func:`anchor` decides where to begin reading for a segment.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quorin.engine.backend import Bounds, Tail

LEASE_RETRY_SECONDS = 0.2
LOG_CHECK_SECONDS = 1.0
LOOK_SECONDS = 0.5
BACK_OFF_SECONDS = (0.1, 5.0)
PACE_SECONDS = 0.01
FAST_ENTRIES_PER_SECOND = 7_000


class Step(enum.Enum):
    """What a consumer does next."""

    stop = "leave the loop"
    wait = "sleep for the seconds that come with the step, or until stopped"
    look = "read the control plane's list of schemas"
    take = "try to become the writer of the segments that are not owned"
    check = "check that the log is still the one that the segments follow"
    flush = "begin to make the history durable; or, when that is done, trim entries that are no longer needed"
    read = "read the log, waiting a little for entries, and apply them"


@dataclass(frozen=True, slots=True)
class FlushLimits:
    """The history is flushed when any of these is reached: seconds since the first unflushed row, rows, bytes."""

    seconds: float
    rows: int
    size: int


@dataclass(slots=True)
class Agenda:
    """The state that decides a consumer's next step. Times are seconds of one monotonic clock."""

    targets: int
    owned: int = 0
    stopping: bool = False
    discovers: bool = False
    unflushed: bool = False
    unflushed_rows: int = 0
    unflushed_bytes: int = 0
    flushing: bool = False
    flushing_rows: int = 0
    flushing_bytes: int = 0
    flush_is_done: bool = False
    is_full: bool = False
    look_at: float = 0.0
    take_at: float = 0.0
    check_at: float = 0.0
    flush_at: float = 0.0
    retry_at: float = 0.0
    failures: int = 0
    failing: Step | None = None

    def looked(self, targets: int, now: float) -> None:
        """There are ``targets`` schemas to work on; new ones are to be taken."""
        if targets != self.targets:
            self.take_at = now
        self.targets = targets
        self.look_at = now + LOOK_SECONDS

    def took(self, owned: int, now: float) -> None:
        """The consumer owns ``owned`` segments; newly taken ones are to be checked against the log."""
        if owned > self.owned:
            self.check_at = now
        self.owned = owned
        self.take_at = now + LEASE_RETRY_SECONDS

    def lost(self, owned: int, now: float) -> None:
        """The consumer owns only ``owned`` segments now."""
        self.owned = owned
        self.take_at = now

    def checked(self, now: float) -> None:
        """The segments follow the log."""
        self.check_at = now + LOG_CHECK_SECONDS

    def applied(self, now: float, limits: FlushLimits, *, rows: int, size: int) -> None:
        """Add rows and bytes that were read and are not flushed yet."""
        if not self.unflushed:
            self.unflushed = True
            self.flush_at = now + limits.seconds
        self.unflushed_rows += rows
        self.unflushed_bytes += size
        if self.unflushed_rows >= limits.rows or self.unflushed_bytes >= limits.size:
            self.flush_at = now
        # What a slow or failed flush leaves in memory is bounded: the next one is then waited for.
        rows, size = self.unflushed_rows + self.flushing_rows, self.unflushed_bytes + self.flushing_bytes
        self.is_full = self.flushing and (rows >= 2 * limits.rows or size >= 2 * limits.size)

    @property
    def can_flush(self) -> bool:
        """Whether another flush can begin, or the one that goes on is to be waited for."""
        return not self.flushing or self.is_full

    @property
    def waits_for_flush(self) -> bool:
        """Whether nothing is applied until the history is flushed."""
        return self.is_full or self.failing is Step.flush

    def flush_begun(self) -> None:
        """A flush of all rows until now has begun; it goes on while more are applied."""
        self.flushing, self.unflushed = True, False
        self.flushing_rows, self.flushing_bytes = self.unflushed_rows, self.unflushed_bytes
        self.unflushed_rows = self.unflushed_bytes = 0

    def flush_settled(self) -> None:
        """The rows of the flush that was begun are durable."""
        self.flushing = self.flush_is_done = self.is_full = False
        self.flushing_rows = self.flushing_bytes = 0

    def flush_failed(self, now: float) -> None:
        """What is applied is not durable, or the log is not trimmed behind it: all of it is to be flushed at once."""
        self.unflushed, self.flush_at = True, now
        self.unflushed_rows += self.flushing_rows
        self.unflushed_bytes += self.flushing_bytes
        self.flush_settled()

    def trim_failed(self, now: float, limits: FlushLimits) -> None:
        """One of several logs was not trimmed: the next flush tries again, which does not wait for new rows."""
        if not self.unflushed:
            self.unflushed = True
            self.flush_at = now + max(limits.seconds, LOG_CHECK_SECONDS)

    def flushed(self) -> None:
        """All applied rows are durable."""
        self.flush_settled()
        self.unflushed = False
        self.unflushed_rows = self.unflushed_bytes = 0

    def failed(self, step: Step, now: float) -> float:
        """A step failed because something was unreachable. Returns the seconds until the retry; it checks the log."""
        delay = back_off(self.failures)
        self.failures += 1
        self.failing = step
        self.retry_at = now + delay
        self.check_at = now
        return delay

    def succeeded(self, step: Step) -> None:
        """A step succeeded. That ends failures of this step only: another step may need something else."""
        if step is self.failing:
            self.failures, self.failing = 0, None


def back_off(failures: int) -> float:
    """The seconds to wait before the next try, after so many failures before this one."""
    first, longest = BACK_OFF_SECONDS
    return float(min(first * 2 ** min(failures, 30), longest))


def next_step(agenda: Agenda, now: float) -> tuple[Step, float]:
    """The next step, and for ``Step.wait`` how many seconds to wait."""
    if agenda.stopping:
        return Step.stop, 0.0
    if now < agenda.retry_at:
        return Step.wait, agenda.retry_at - now
    if agenda.discovers and now >= agenda.look_at:
        return Step.look, 0.0
    if agenda.owned < agenda.targets and now >= agenda.take_at:
        return Step.take, 0.0
    if agenda.owned == 0:
        next_at = agenda.take_at if agenda.targets else agenda.look_at
        if agenda.discovers:
            next_at = min(next_at, agenda.look_at)
        return Step.wait, next_at - now
    if now >= agenda.check_at:
        return Step.check, 0.0
    if agenda.flush_is_done or (agenda.unflushed and now >= agenda.flush_at and agenda.can_flush):
        return Step.flush, 0.0
    return Step.read, 0.0


@dataclass(slots=True)
class EntryRate:
    """The rate of entries. Above the rate of one synchronous writer, no caller is blocked on an individual write, so
    the consumer pauses briefly and batches, which leaves the processor to the producers.
    """

    since: float = 0.0
    count: int = 0
    fast: bool = False

    def is_fast(self, entries: int, now: float) -> bool:
        """Add ``entries`` read by ``now`` (seconds); returns whether the recent rate is high."""
        self.count += entries
        if now - self.since >= PACE_SECONDS:
            self.fast = self.count > FAST_ENTRIES_PER_SECOND * (now - self.since)
            self.since, self.count = now, 0
        return self.fast


class Fit(enum.Enum):
    """How a segment's position fits the log."""

    same = "the segment follows this log"
    new = "the segment has followed no log yet"
    new_after_trim = "the segment has followed no log yet, and entries were trimmed already"
    other_log = "the log was wiped and began anew, or is another one"
    shorter = "the log lacks the entry at the segment's position: it lost its tail, or an older copy was restored"
    trimmed = "entries behind the segment's position were trimmed before this consumer read them"


@dataclass(frozen=True, slots=True)
class Anchor:
    """Read the log behind ``after`` for a segment, and why there. ``applied`` is what the segment has of the log in any
    case, if its own position does not say so any more.
    """

    after: int
    fit: Fit
    applied: int = 0

    @property
    def resets(self) -> bool:
        """Whether the segment's own position must be set to ``applied``, as it belongs to no log, or to another."""
        return self.fit in (Fit.new, Fit.new_after_trim, Fit.other_log, Fit.shorter)


def anchor(
    *,
    position: int,
    log_identity: int,
    identity: int,
    bounds: Bounds,
    flushed: int | None = None,
    replaced_at: int = 0,
) -> Anchor:
    """Where to read the log from for a segment at ``position`` of the log ``log_identity`` (0: none yet).

    ``flushed`` is the position up to which the history is durable, if there is one. Applying an entry again changes
    nothing, so reading too much is safe, and reading too little never is. But for entries of before ``replaced_at``,
    where a load replaced all rows: they would bring back what it has left out.
    """
    # Each fallback reads the log from its start: served rows stay, and event times decide about each entry.
    if log_identity == 0:
        return Anchor(0, Fit.new_after_trim if bounds.trimmed else Fit.new)
    if log_identity != identity:
        return Anchor(0, Fit.other_log)
    if position > bounds.last or position in bounds.lost:
        # A log loses its end. If the entry at that position is there, everything up to it is, and was applied.
        is_there = replaced_at <= bounds.last and replaced_at not in bounds.lost
        applied = replaced_at if is_there else 0
        return Anchor(applied if flushed is None else min(applied, flushed), Fit.shorter, applied)
    # Rows that are in the segment but not durable in the history are read again, for the history.
    after = position if flushed is None else min(position, flushed)
    # Entries trimmed before they were read are lost to this segment: that is reported, and the rest applied.
    return Anchor(after, Fit.trimmed if bounds.trimmed > after else Fit.same)


def is_all(tail: Tail, position: int, *, log_identity: int, schema: str) -> bool:
    """Whether a tail is all that a read of the log would return for a segment at ``position`` of the log
    ``log_identity`` that holds ``schema`` (JSON).

    If so, the segment follows this log, no entry that it lacks was trimmed, no upgrade is pending, and all entries of
    its schema from its position to the end of the tail are in the tail. The tail may be older than the segment's
    position: entries are only added at the end of a log.
    """
    is_between = tail.after <= position < tail.found.through
    return is_between and log_identity == tail.identity and tail.trimmed <= position and schema == tail.schema


@dataclass(slots=True)
class SchemaPositions:
    """The position of each schema. The log is read from the lowest; schemas further on skip entries they have."""

    after: dict[str, int] = field(default_factory=dict)

    @property
    def lowest(self) -> int:
        """The position behind which to read."""
        return min(self.after.values(), default=0)

    def wants(self, schema_name: str, position: int) -> bool:
        """Whether an entry is new to a schema."""
        known = self.after.get(schema_name)
        return known is not None and position > known

    def advance(self, through: int) -> None:
        """Every schema has all of its entries up to ``through``."""
        for name, position in self.after.items():
            self.after[name] = max(position, through)
