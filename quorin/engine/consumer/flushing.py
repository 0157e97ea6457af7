"""Flush the history in a thread of its own, while the consumer goes on applying."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pyarrow as pa

from quorin import metrics
from quorin.engine.consumer.history import ConcurrentWriter, NoopOfflineWriter
from quorin.errors import ConnectionFailedError, HistoryUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.backend import ReadResult
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.engine.consumer.lane import Lane
    from quorin.engine.consumer.lanes import Lanes
    from quorin.engine.consumer.plan import Agenda, FlushLimits
    from quorin.engine.consumer.trimming import Covered

    Flushed = list[tuple[Lane, Covered]]


class Flusher:
    """Flushes the histories of all lanes; at most one flush is in flight.

    A flush covers what was applied before it began; rows that are applied meanwhile are left to the next. A crash loses
    nothing: the log is trimmed afterwards, by the thread that applies, which alone knows what it still owns.

    A history that is no :class:`ConcurrentWriter` is flushed by the thread that applies. What fails, in the history or
    in a log that is to be trimmed, is tried again by another flush, also if no new rows come.
    """

    def __init__(self, lanes: Lanes, history: OfflineWriter | None, limits: FlushLimits) -> None:
        self._lanes = lanes
        self._limits = limits
        self._keeps_rows = history is not None and type(history) is not NoopOfflineWriter
        self._thread: ThreadPoolExecutor | None = None
        self._in_flight: tuple[Future[int], Flushed] | None = None

    def prepare(self) -> None:
        """Load now what rows on their way to a history would wait for: Arrow imports pandas, if there is one, with the
        first scalar, which takes half a second.
        """
        if self._keeps_rows:
            pa.scalar(0)

    @property
    def is_done(self) -> bool:
        """Whether a flush has ended, well or not, and is to be settled."""
        return self._in_flight is not None and self._in_flight[0].done()

    def advance(self, agenda: Agenda) -> None:
        """Begin a flush, which goes on beside the next steps; or settle the one that was begun, and trim behind it.

        :raises HistoryUnavailableError: if it failed. The history keeps its rows for the next one.
        :raises ConnectionFailedError: if the only log cannot be reached.
        :raises WriterFencedError: if a segment was overtaken; the rest is not trimmed.
        """
        if agenda.waits_for_flush:
            self.flush(agenda)
        elif agenda.flushing:
            with _again_if_failed(agenda):
                flushed = self._settle()
                agenda.flush_settled()
                self._trim(agenda, flushed)
        else:
            self._begin()
            agenda.flush_begun()

    def flush(self, agenda: Agenda) -> None:
        """Make all that is applied durable in the calling thread, and trim behind it. Raises as :meth:`advance`."""
        if self._in_flight is not None:
            with suppress(HistoryUnavailableError):  # The history has kept the rows for this flush.
                self._settle()
        covered = self._covered()
        with _again_if_failed(agenda):
            flushed = _settled(_called(covered), covered)
            agenda.flushed()
            self._trim(agenda, flushed)

    def applied(self, agenda: Agenda, rows: int, found: ReadResult) -> None:
        """Rows of these entries were applied: they are to be flushed when a limit is reached."""
        size = sum(len(payload) for _, payload in found.entries)
        agenda.applied(time.monotonic(), self._limits, rows=rows, size=size)

    def finish(self, agenda: Agenda) -> None:
        """:meth:`flush` what is not durable, if anything is not."""
        if agenda.unflushed or agenda.flushing:
            self.flush(agenda)

    def close(self) -> None:
        """Wait for a flush in flight, whatever becomes of it, and end the thread."""
        thread, self._thread, self._in_flight = self._thread, None, None
        if thread is not None:
            thread.shutdown()

    def _trim(self, agenda: Agenda, flushed: Flushed) -> None:
        if not self._lanes.trim(flushed):
            agenda.trim_failed(time.monotonic(), self._limits)

    def _begin(self) -> None:
        covered = self._covered()
        if not all(isinstance(lane.historian.offline, ConcurrentWriter) for lane, _ in covered):
            self._in_flight = _called(covered), covered
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="quorin-flush")
        self._in_flight = self._thread.submit(_flush, covered), covered

    def _settle(self) -> Flushed:
        """Wait for the flush in flight. Returns what the logs may be trimmed behind."""
        assert self._in_flight is not None  # noqa: S101 - one was begun
        (future, covered), self._in_flight = self._in_flight, None
        return _settled(future, covered)

    def _covered(self) -> Flushed:
        return [(lane, lane.covered()) for lane in self._lanes]


@contextmanager
def _again_if_failed(agenda: Agenda) -> Iterator[None]:
    try:
        yield
    except ConnectionFailedError:
        agenda.flush_failed(time.monotonic())
        raise


def _called(covered: Flushed) -> Future[int]:
    """The outcome of a flush by the calling thread."""
    future: Future[int] = Future()
    try:
        future.set_result(_flush(covered))
    except Exception as error:  # noqa: BLE001 - it is raised where the outcome is used
        future.set_exception(error)
    return future


def _flush(covered: Flushed) -> int:
    """Flush, in any thread; returns the nanoseconds that it took."""
    started = time.monotonic_ns()
    for lane, part in covered:
        lane.trimming.flush(part)
    return time.monotonic_ns() - started


def _settled(future: Future[int], covered: Flushed) -> Flushed:
    try:
        nanoseconds = future.result()
    except HistoryUnavailableError:
        metrics.flush_failures.inc()
        raise
    metrics.flushes.inc()
    metrics.flush_seconds.inc(nanoseconds)
    return covered
