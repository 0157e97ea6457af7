"""The logs of a consumer: one, or one for each partition that its node holds."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from quorin.engine.consumer.history import history_of_partition
from quorin.engine.consumer.lane import Lane, Seen
from quorin.engine.consumer.loads import Loads
from quorin.engine.consumer.logs_beside import LogsBeside
from quorin.engine.repartition.node import carry_over, grown_from
from quorin.errors import ConnectionFailedError, WriterFencedError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from quorin.engine.backend import ReadResult
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.engine.consumer.lane import LaneSettings
    from quorin.engine.consumer.ownership import Ownership
    from quorin.engine.consumer.target import Target
    from quorin.engine.consumer.trimming import Covered
    from quorin.shm import SegmentRegistry

    _Call = tuple[Lane | None, Any, Callable[[], Any]]

CLOSE_SECONDS = 0.5
RELEASE_SECONDS = 2.0

_log = get_logger(__name__)


class Lanes:
    """One lane for each log. They are made when there is a first segment to write to: how many logs there are is
    decided by then, and known to the control plane.
    """

    def __init__(
        self,
        registry: SegmentRegistry,
        stream_key: str,
        history: OfflineWriter | None,
        ownership: Ownership,
        settings: LaneSettings,
    ) -> None:
        self._registry = registry
        self._stream_key = stream_key
        self._history = history
        self._ownership = ownership
        self._new = partial(Lane, registry=registry, ownership=ownership, settings=settings)
        self.loads = Loads(registry.backend)
        self._lanes: list[Lane] = []
        self._beside = LogsBeside(registry.backend)
        self._reads: _Reads | None = None

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    @property
    def only(self) -> Lane | None:
        """The lane of the only log; None if there are several, or none was made yet."""
        return self._lanes[0] if len(self._lanes) == 1 and self._lanes[0].partition is None else None

    @property
    def is_failing(self) -> bool:
        """Whether a log cannot be reached now."""
        return any(lane.failures for lane in self._lanes)

    def take(self, *, waiting: bool) -> bool:
        """Make the lanes, and become the writer of all targets that they do not follow; whether lanes were made, in
        which no segment is anchored.

        :raises ConnectionFailedError, PartitionedError: as :meth:`make`.
        :raises WriterLeaseHeldError, SchemaMismatchError, SegmentNotFoundError: as :meth:`Ownership.take`.
        """
        were_made = self.make()
        while True:
            for target in self._ownership.targets:
                if not (target.holds_lease and self.follow(target)):
                    self.forget(target)
                    self._ownership.take(target, waiting=waiting)
            # A segment that was taken may have fewer partitions than the others: then its logs are followed first.
            if not self.make():
                return were_made
            were_made = True

    def make(self) -> bool:
        """Make the lanes, unless they are made: then False.

        :raises ConnectionFailedError: if the control plane cannot be reached.
        :raises PartitionedError: if the history cannot be kept by partition.
        """
        lowest = self._ownership.lowest_count()
        if lowest not in (None, self._registry.partitioning.count):
            # One of the segments lacks what was written before the deployment grew. The others wait for it.
            self._registry.set_partitioning(self._registry.partitioning_at(lowest))
        held = self._ownership.partitioning
        if self._lanes and held.count == self._ownership.partition_count:
            return False
        self._end()
        log = partial(self._registry.backend.log, self._stream_key, of=held.count)
        history = partial(history_of_partition, self._history)
        self._ownership.partition_count = held.count
        self.loads = Loads(self._registry.backend)
        new = partial(self._new, loads=self.loads)
        if held.count == 1:
            self._lanes = [new(log(0), None, history(0, 1))]
            return True
        self._lanes = [new(log(number), number, history(number, held.count)) for number in sorted(held.held)]
        self._beside.others = {number: log(number) for number in range(held.count) if number not in held.held}
        return True

    def carry_over(self, flush: Callable[[], None]) -> bool:
        """If the deployment has grown and its former logs are applied to their ends, carry the segments over to the
        new number of partitions, and follow their logs: :meth:`make` makes the lanes. False if there is nothing to do.

        ``flush`` makes durable what is applied, before that.

        :raises ConnectionFailedError: if the history cannot be written, or a log cannot be reached.
        :raises WriterFencedError: if a segment was overtaken.
        """
        owned, count, backend = self._ownership.owned(), self._ownership.partition_count, self._registry.backend
        if not owned or count is None or not self._lanes or not all(lane.is_at_end for lane in self._lanes):
            return False
        former = grown_from(backend, self._registry.node, count)
        # The logs were closed at the last look; a growth that was undone since, and then a second one, let them take
        # more. By now none does.
        if former is None or not all(lane.has_all_for(owned) for lane in self._lanes):
            return False
        flush()
        after = self._registry.partitioning_at(2 * count)
        carry_over(backend, self._stream_key, [target.opened for target in owned], after, former)
        self._end()
        backend.forget_partitions()
        self._registry.set_partitioning(after)
        return True

    def _end(self) -> None:
        """Read these logs no more."""
        self.stop_reading()
        self.release()
        self.loads.keep([])
        self._lanes, self._beside.others, self._beside.closed = [], {}, None

    def follow(self, target: Target) -> bool:
        """Whether all lanes follow their log for a target, or are about to."""
        return all(lane.follows(target) for lane in self._lanes)

    def forget(self, target: Target) -> None:
        """A target has to be anchored again, because another process may have written to its segment."""
        for lane in self._lanes:
            lane.cursor.forget(target)

    def keep(self, targets: list[Target]) -> None:
        """Forget all but these targets."""
        for lane in self._lanes:
            lane.cursor.keep(targets)

    def check(self) -> None:
        """Finish loads that are decided; anchor segments that do not follow their logs, now or before the next read.

        :raises ConnectionFailedError: if the only log, or the control plane, cannot be reached.
        """
        self.loads.finish_decided()
        closed = next((lane.log for lane in self._lanes if lane.closed_end is not None), None)
        self._beside.closed = None if closed is None else (self._ownership.partitioning.count, closed)
        for lane in self._lanes:
            if lane.partition is None:
                self._beside.look()
                lane.check()
            else:
                lane.must_look = True

    def read(self, *, block_ms: int) -> list[tuple[Lane, ReadResult]]:
        """What the logs have next; waits up to ``block_ms`` if none has anything.

        Several logs are read at once, each by a thread of its own; one that is unreachable is tried again later.

        :raises ConnectionFailedError: if the only log cannot be reached.
        :raises WriterFencedError: if a segment was overtaken.
        """
        only = self.only
        if only is not None:
            return [(only, only.cursor.read_call(block_ms=block_ms)())]
        if self._reads is None:
            self._reads = _Reads()
        for lane in self._lanes:
            if time.monotonic() >= lane.retry_at and not self._reads.is_busy(lane):
                call = lane.look_call() if lane.must_look else lane.cursor.read_call(block_ms=block_ms)
                self._reads.start(lane, lane.version(), call)
        if self._beside.is_due() and not self._reads.is_busy(None):
            self._reads.start(None, None, self._beside.look)
        outcomes = self._reads.finished(block_ms / 1000)
        return [found for one in outcomes if (found := self._taken(*one)) is not None]

    def _taken(self, lane: Lane | None, version: Any, outcome: Any) -> tuple[Lane, ReadResult] | None:
        """What a call has read, if it is to be applied."""
        if lane is None:
            self._beside.looked(outcome, self._ownership.owned())
            return None
        if isinstance(outcome, ConnectionFailedError):
            self.failed(lane, outcome)
            return None
        if isinstance(outcome, BaseException) and (isinstance(outcome, WriterFencedError) or version == lane.version()):
            raise outcome
        lane.succeeded()
        if version != lane.version():
            # What was read for other segments, or from another position, may have a gap; one may be closed by now.
            return None
        if isinstance(outcome, Seen):
            lane.saw(outcome)
            return None
        return lane, outcome

    def trim(self, flushed: list[tuple[Lane, Covered]]) -> bool:
        """Trim the logs behind a flush; False if one of several could not be reached.

        :raises ConnectionFailedError: if the only log cannot be reached.
        :raises WriterFencedError: if a segment was overtaken; the rest is not trimmed.
        """
        for lane, covered in flushed:
            if lane.failures:
                continue
            with self.failing_alone(lane):
                lane.trim(covered)
        return not self.is_failing

    @contextmanager
    def failing_alone(self, lane: Lane) -> Iterator[None]:
        """In the block a log is used; if one of several cannot be reached, the others go on."""
        try:
            yield
        except ConnectionFailedError as error:
            if lane.partition is None:
                raise
            self.failed(lane, error)

    def stop_reading(self) -> None:
        """Wait for the reads that are in flight, and end their threads."""
        reads, self._reads = self._reads, None
        if reads is not None:
            reads.close()

    def release(self) -> None:
        """End the historian's leases. Those of logs that are unreachable end by themselves.

        It does not wait long for masters that are away.
        """
        deadline = time.monotonic() + RELEASE_SECONDS
        for lane in self._lanes:
            try:
                lane.historian.release()
            except ConnectionFailedError as error:
                _log.warning("historian_not_released", partition=lane.partition, error=str(error))
                if time.monotonic() >= deadline:
                    return

    def end_others_of_node(self) -> None:
        """End the leases of another consumer of this node, which is frozen: what it has decided to trim stays."""
        for lane in self._lanes:
            lane.historian.end_others_of_node()

    def failed(self, lane: Lane, error: ConnectionFailedError) -> None:
        """A lane could not reach its log; the others go on."""
        is_first, delay = lane.failures == 0, lane.failed(time.monotonic())
        if is_first:
            _log.warning("partition_unreachable", partition=lane.partition, error=str(error), next_try_seconds=delay)


class _Reads:
    """Calls to logs that are in flight, at most one a lane, and one for those that the node does not hold (None).

    Each lane has a thread of its own, as a log has a connection for each thread that called it. The threads are
    daemons, as that of a follower is: a process that ends does not wait for a log.
    """

    def __init__(self) -> None:
        self._busy: set[Lane | None] = set()
        self._calls: dict[Lane | None, SimpleQueue[_Call | None]] = {}
        self._done: SimpleQueue[tuple[Lane | None, Any, Any]] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def is_busy(self, lane: Lane | None) -> bool:
        """Whether a call of the lane is in flight."""
        return lane in self._busy

    def start(self, lane: Lane | None, version: Any, call: Callable[[], Any]) -> None:
        """Make a call in the lane's thread; :meth:`finished` returns what it returned or raised."""
        self._busy.add(lane)
        if lane not in self._calls:
            calls = self._calls[lane] = SimpleQueue()
            thread = threading.Thread(target=_work, args=(calls, self._done), name="quorin-lane", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._calls[lane].put((lane, version, call))

    def finished(self, timeout_seconds: float) -> Iterator[tuple[Lane | None, Any, Any]]:
        """The calls that have ended since; waits for one of them."""
        try:
            one = self._done.get(timeout=timeout_seconds)
            while True:
                self._busy.discard(one[0])
                yield one
                one = self._done.get_nowait()
        except Empty:
            return

    def close(self) -> None:
        """End the threads. Waits for calls, but not for long: what they return is dropped."""
        for calls in self._calls.values():
            calls.put(None)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _work(calls: SimpleQueue[_Call | None], done: SimpleQueue[tuple[Lane | None, Any, Any]]) -> None:
    while (one := calls.get()) is not None:
        lane, version, call = one
        try:
            outcome = call()
        except BaseException as error:  # noqa: BLE001 - it is raised where the outcome is used
            outcome = error
        done.put((lane, version, outcome))
