"""Applying the log inside the processes that write to it, without a consumer process and without a thread.

An :class:`InlineConsumer` takes a segment's writer lease, applies what the log has, and releases the lease, so that
several processes can write to one segment in turn. It works beside a :class:`quorin.wal_consumer.WALConsumer` in
another process: it then waits for that one.

A process that finds the lease held need not wait: it may *call* the holder, by a word in the segment's header. No entry
is left behind, because both sides look again:

- The holder applies, releases the lease, and only then reads the word. If it was called, it applies once more.
- A process that called tries the lease once more. If it is still held, that holder has not read the word yet, and will.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.log.token import Token
from quorin.engine.reads.waiting import has_applied
from quorin.errors import (
    NotPicklableError,
    SchemaMismatchError,
    SegmentClosedError,
    SegmentConflictError,
    SegmentNotFoundError,
    WriterFencedError,
    WriterLeaseHeldError,
    WriteSyncTimeoutError,
)
from quorin.wal_consumer import WALConsumer

if TYPE_CHECKING:
    from quorin.engine.backend import Log
    from quorin.engine.memory.view import SegmentView
    from quorin.shm import Segment, SegmentRegistry
    from quorin.wal import Tail
    from quorin.wal_consumer import OfflineWriter

__all__ = ["InlineConsumer", "progress", "shows", "wait_until_applied"]

DEFAULT_TIMEOUT_MS = 10_000.0
_FIRST_PAUSE_SECONDS = 0.0002
_MAX_PAUSE_SECONDS = 0.002

_GONE = (SchemaMismatchError, SegmentClosedError, SegmentNotFoundError)
"""What using a segment raises after it was removed, or replaced by one with other fields."""


class InlineConsumer:
    """Applies the log to the current segment of one schema, in the process and thread that calls it.

    It opens the segment at first use, and anew when the segment is removed or replaced. Between two calls it holds no
    lease. Threads may share it; a forked child needs its own.

    ``open_segment`` opens the current segment for writing, by default ``registry.open_stored``. With ``offline`` the
    rows go into the history too. It never trims the log, whose name is ``stream_key``. ``timeout_ms`` limits waits, see
    :func:`wait_until_applied`.
    """

    def __init__(
        self,
        registry: SegmentRegistry,
        schema_name: str,
        *,
        open_segment: Callable[[], Segment] | None = None,
        offline: OfflineWriter | None = None,
        stream_key: str = DEFAULT_STREAM_KEY,
        timeout_ms: float = DEFAULT_TIMEOUT_MS,
    ) -> None:
        self.schema_name = schema_name
        self._registry = registry
        self._stream_key = stream_key
        self._log = registry.backend.log(stream_key)
        self._open_segment = open_segment or self._open_stored
        self._offline = offline
        self._timeout_ms = timeout_ms
        self._opened: tuple[Segment, WALConsumer] | None = None
        self._another_applies = False
        self._applying = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError("an InlineConsumer holds memory of this process: make one in the other process")

    def drain(self, tail: Tail | None = None, *, calls_holder: bool = False) -> bool:
        """Apply what the log has now; False if another process holds the writer lease.

        ``tail`` is what :meth:`quorin.wal.WALProducer.write_and_read` returned, which may save a look at the log.

        With ``calls_holder``, False means that the holder of the lease will apply what the log has now. Only an
        ``InlineConsumer`` answers calls, and a ``WALConsumer`` that runs reads on anyway.

        A crash before the segment's position is published loses nothing: the next consumer applies the entries again.

        :raises SegmentNotFoundError: if the schema has no segment. :raises CapacityExceededError: if it cannot grow.
        :raises ConnectionFailedError: if the log cannot be reached.
        """
        called = None
        while True:
            try:
                with self._applying:
                    segment, consumer = self._leased()
                    try:
                        held = segment.writing_view()
                        consumer.drain(tail)
                        # Growth replaced the generation, and any of the generations between may have been called.
                        was_replaced = segment.writing_view() is not held
                    finally:
                        segment.release_writer_lease()
            except (WriterLeaseHeldError, WriterFencedError):
                self._another_applies = True
                if not calls_holder:
                    return False
                newest = self._newest_view()
                if newest is not None and newest is called:  # The lease that was called is still held.
                    return False
                called = newest
                if called is not None:
                    called.call_writer()
                continue
            except SegmentConflictError:  # Another segment is current on the node.
                self._forget()
                continue
            self._another_applies = False
            if not (held.answers_call() or was_replaced):
                return True
            # The process that called relies on this one, so this one may not give up silently either.
            tail, calls_holder = None, True

    def settle(self, position: int, tail: Tail | None = None) -> None:
        """Return once everything up to a log position is applied: by this process, or by the one with the lease.

        :raises WriteSyncTimeoutError: if nothing was applied for ``timeout_ms``. The entries stay in the log.
        :raises SegmentNotFoundError, CapacityExceededError, ConnectionFailedError: as :meth:`drain`.
        """
        if not self.drain(tail):
            self._wait(position)

    def catch_up(self, after: int) -> None:
        """Apply what was logged after a position, or wait for the process that is applying it.

        ``after`` is a position that the segment has reached. If the log has nothing after it, no segment is opened for
        writing. Raises as :meth:`settle`.
        """
        if self._registry.partitioning.count > 1:
            ends = self._ends()
            if not self.drain() and not self._shows(ends):
                self._wait(ends)
            return
        last = self._log.bounds().last
        if _has_all(self._log, self.schema_name, after, last):
            return
        # Entries of other schemas may hide the end of the log. This moves the position past them, for the next process.
        if not self.drain() and self._is_behind(last):
            self._wait(last)

    def reach(self, after: int | Token) -> int | Token:
        """Apply what was logged after a position that the segment has reached, without waiting for another process.

        Returns a log position up to which the segment then has all entries of its schema; 0 if another process is
        applying them. With several partitions both are tokens, and what is returned has a part for each log of which
        the segment has all. Raises as :meth:`drain`.

        :raises TokenError: with several partitions, for a position that is no token.
        """
        if self._registry.partitioning.count > 1:
            return _reach_parts(self._logs(), self.schema_name, Token.of(after), self.drain)
        last = self._log.bounds().last
        return last if _has_all(self._log, self.schema_name, after, last) or self.drain() else 0

    def _logs(self) -> list[Log]:
        """The log of each partition that the segment holds, or will hold."""
        held = self._registry.partitioning if self.segment is None else self.segment.partitioning
        log = partial(self._registry.backend.log, self._stream_key, of=held.count)
        return [log(partition) for partition in sorted(held.held)]

    def _ends(self) -> Token:
        """The last position of each of these logs."""
        states = (log.state() for log in self._logs())
        return Token(*((identity, bounds.last) for identity, bounds in states if bounds.last))

    def _shows(self, position: int) -> bool:
        """Whether the segment has applied a position; of several partitions, those of a token."""
        try:
            segment = self.segment
            return segment is not None and shows(segment, position)
        except _GONE:
            return False

    @property
    def segment(self) -> Segment | None:
        """The segment that is open, which may have been removed or replaced since; None before the first use."""
        opened = self._opened
        return None if opened is None else opened[0]

    @property
    def own_position(self) -> int | None:
        """The segment's position, if this process was the last to apply the log, as far as it knows; else None.

        It is the ``after`` for :meth:`quorin.wal.WALProducer.write_and_read`. None with a history, which needs a look
        at the log in any case.
        """
        segment = self.segment
        if segment is None or self._another_applies or self._offline is not None:
            return None
        try:
            return segment.position
        except _GONE:
            return None

    @contextmanager
    def writer(self) -> Iterator[Segment]:
        """The current segment with its writer lease, which is released on leaving the block.

        :raises WriterLeaseHeldError: if another process holds the lease.
        :raises SegmentNotFoundError: if the schema has no segment.
        """
        with self._applying:
            segment, _ = self._leased()
            try:
                yield segment
            finally:
                segment.release_writer_lease()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no thread apply inside the block, for example to discard the segment; it is opened anew afterwards."""
        with self._applying:
            yield
            self._forget()

    def _open_stored(self) -> Segment:
        return self._registry.open_stored(self.schema_name, read_only=False)

    def _leased(self) -> tuple[Segment, WALConsumer]:
        while True:
            if self._opened is None:
                segment = self._open_segment()
                backend = self._registry.backend
                consumer = WALConsumer(
                    backend,
                    [segment],
                    offline=self._offline,
                    registry=self._registry,
                    stream_key=self._stream_key,
                    trims=False,
                )
                self._opened = segment, consumer
            opened = segment, _ = self._opened
            with suppress(*_GONE, WriterFencedError):
                if segment.writing_view().stored is segment.schema:
                    return opened
                segment.release_writer_lease()
            # It was removed, or replaced by one with other fields.
            self._forget()

    def _forget(self) -> None:
        self._opened = None

    def _newest_view(self) -> SegmentView | None:
        """The generation whose lease is held; None if it was replaced at this moment."""
        segment = self.segment
        try:
            return None if segment is None else segment.current_view()
        except _GONE:
            return None

    def _position(self) -> int:
        """The position of the segment, of several partitions their sum; 0 if it was replaced at this moment."""
        segment = self.segment
        try:
            return 0 if segment is None else progress(segment)
        except _GONE:
            return 0

    def _is_behind(self, last: int) -> bool:
        """Whether the log has entries of this schema, up to ``last``, that the segment does not have."""
        position = self._position()
        while position < last:
            found = self._log.read(position, schema_names=[self.schema_name])
            if found.entries:
                return True
            if found.through == position:
                return False
            position = found.through
        return False

    def _wait(self, position: int) -> None:
        wait_until_applied(
            self.schema_name,
            position,
            self._position,
            timeout_ms=self._timeout_ms,
            apply=self.drain,
            shows=lambda: self._shows(position),
        )


def _reach_parts(logs: list[Log], schema_name: str, after: Token, drain: Callable[[], bool]) -> Token:
    """:meth:`InlineConsumer.reach` with several partitions."""
    applied = dict(after.parts)
    ends = [(identity, bounds.last) for identity, bounds in (log.state() for log in logs)]
    had = [
        (identity, last)
        for log, (identity, last) in zip(logs, ends, strict=True)
        if _has_all(log, schema_name, applied.get(identity, 0), last)
    ]
    reached = ends if len(had) == len(ends) or drain() else had
    return Token(*(part for part in reached if part[1]))


def _has_all(log: Log, schema_name: str, after: int, last: int) -> bool:
    """Whether a log has no entry of a schema after one position and up to another."""
    found = log.read(after, schema_names=[schema_name])
    return not found.entries and found.through >= last


def shows(segment: Segment, position: int) -> bool:
    """Whether a segment has applied a position; with several partitions, what a token has of those that it holds.

    :raises TokenError: with several partitions, for a position that is no token, or a token of other logs.
    """
    if segment.partitioning.count == 1:
        return segment.position >= position
    return has_applied(segment, Token.of(position))


def progress(segment: Segment) -> int:
    """A number that grows as a segment advances: its position, or the sum of those of its partitions."""
    return segment.position if segment.partitioning.count == 1 else sum(part.position for part in segment.parts())


def wait_until_applied(
    schema_name: str,
    position: int,
    applied: Callable[[], int],
    *,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    apply: Callable[[], bool] = lambda: False,
    shows: Callable[[], bool] | None = None,
) -> None:
    """Wait until ``applied()``, a segment's position, has reached a log position; or until ``shows()``, where several
    partitions have a position each.

    ``apply`` is tried again and again meanwhile; the wait ends when it returns True. As long as the position advances
    there is no limit.

    :raises WriteSyncTimeoutError: if the position did not advance for ``timeout_ms``.
    """
    pause, reached, since = _FIRST_PAUSE_SECONDS, -1, time.monotonic()
    while not apply():
        now_at = applied()
        if now_at >= position if shows is None else shows():
            return
        if now_at > reached:
            reached, since = now_at, time.monotonic()
        elif (time.monotonic() - since) * 1000 > timeout_ms:
            raise WriteSyncTimeoutError(schema_name, position, timeout_ms)
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)
