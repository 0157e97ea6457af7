"""Applying the log on a node in the background of its serving processes, where no consumer process runs.

Each serving process has a :class:`Follower`. One of them, which holds a file lock of the node, applies the log in a
thread; the others try the lock a few times a second, and one goes on when that process ends, however it ends, or is
frozen for half a minute. A ``quorin consumer`` on the node goes before them: the follower that applies stops within a
second of its start.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from quorin.engine import forks
from quorin.engine.consumer.precedence import DEFAULT_FROZEN_AFTER_SECONDS, take_turn
from quorin.errors import NotPicklableError, QuorinError
from quorin.logging import get_logger
from quorin.wal_consumer import WALConsumer

if TYPE_CHECKING:
    from quorin.shm import Segment, SegmentRegistry

__all__ = ["Follower"]

LOOK_SECONDS = 0.1
PREPARE_SECONDS = 2.0
"""A process that waits for its turn this long loads what applying needs: not while it starts to serve."""
FRESH_SECONDS = 1.0
MAX_WAIT_SECONDS = 10.0
_PAUSE_SECONDS = 0.005
_PATIENCE_SECONDS = 0.5

_log = get_logger(__name__)


class Follower:
    """Applies every schema of a deployment to its segments on this node, in a daemon thread, from :meth:`start` on.

    Segments that the node lacks are made, with ``options`` as for :class:`quorin.wal_consumer.WALConsumer`
    (``capacity``, ``max_id_bytes``, ``offline``, ``snapshots``, ``peers``, ``frozen_after_seconds``). It never trims
    the log. Threads may share it. A forked child has no thread until it calls :meth:`start`, and then one of its own.
    The thread ends when the object is no longer used.

    A crash loses nothing: another process of the node applies the entries again, from the segment's position.
    """

    def __init__(self, registry: SegmentRegistry, **options: Any) -> None:
        self._registry = registry
        self._options = options
        self._starting = threading.Lock()
        self._worker: _Worker | None = None
        forks.register(self)

    def __enter__(self) -> Follower:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError("a Follower has a thread of this process: make one in the other process")

    @property
    def applies(self) -> bool:
        """Whether this process is the one that applies on its node."""
        return self._worker is not None and self._worker.consumer is not None

    def start(self) -> None:
        """Start the thread, unless it runs. Returns at once."""
        if self._worker is not None:
            return
        with self._starting:
            if self._worker is None:
                # The thread must not refer to this object, so that it ends with it.
                self._worker = worker = _Worker(self._registry, self._options)
                weakref.finalize(self, worker.end)
                worker.start()

    def stop(self) -> None:
        """Stop the thread, and wait until it has released its leases."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()
            worker.join()

    def wait_until_fresh(self, segment: Segment) -> bool:
        """Wait until a segment has all that the log had a second ago; False if that is not possible now.

        There is no limit while rows are applied. If the process that applies cannot reach the log, it gives up within
        half a second; if that process does not get to it, after ten seconds.
        """
        since = time.monotonic()
        position = segment.position
        while segment.confirmed_age_seconds() > FRESH_SECONDS:
            now = time.monotonic()
            if segment.position != position:
                position, since = segment.position, now
            if self._is_unreachable(segment, now - since) or now - since > MAX_WAIT_SECONDS:
                return False
            time.sleep(_PAUSE_SECONDS)
        return True

    def _is_unreachable(self, segment: Segment, idle_seconds: float) -> bool:
        consumer = None if self._worker is None else self._worker.consumer
        if consumer is not None:
            return consumer.is_failing
        return idle_seconds > _PATIENCE_SECONDS and segment.stats()["writer_heartbeat_age_seconds"] < MAX_WAIT_SECONDS

    def after_fork_in_child(self) -> None:
        """The thread is not in the child."""
        self._starting = threading.Lock()
        self._worker = None


class _Worker(threading.Thread):
    """The thread: applies while the node's lock is free, until :meth:`end`."""

    def __init__(self, registry: SegmentRegistry, options: dict[str, Any]) -> None:
        super().__init__(name="quorin-follower", daemon=True)
        self.consumer: WALConsumer | None = None
        self._registry = registry
        self._options = options
        self._frozen_after_seconds = options.get("frozen_after_seconds", DEFAULT_FROZEN_AFTER_SECONDS)
        self._ending = threading.Event()
        self._begun = time.monotonic()
        self._is_prepared = False

    def end(self) -> None:
        """Let the thread end; it does within a second."""
        self._ending.set()
        consumer = self.consumer
        if consumer is not None:
            consumer.stop()

    def run(self) -> None:
        """Apply whenever no other process of the node does."""
        reported = ""
        while not self._ending.is_set():
            try:
                self._apply_if_free()
                reported = ""
            except Exception as error:  # noqa: BLE001 - a thread that ended would leave the node stale, unseen
                # Another process may be able to, and this one later: if memory is freed, or a connection returns.
                if repr(error) != reported:
                    reported = repr(error)
                    _log.error("follower_failed", error=reported, exc_info=not isinstance(error, QuorinError))
            self._ending.wait(LOOK_SECONDS)

    def _apply_if_free(self) -> None:
        turn = take_turn(self._registry.node, frozen_after_seconds=self._frozen_after_seconds)
        if turn is None:
            self._prepare()
            return
        try:
            self.consumer = consumer = WALConsumer(
                self._registry.backend, None, registry=self._registry, trims=False, turn=turn, **self._options
            )
            if not self._ending.is_set():
                consumer.run()
            consumer.close()
        finally:
            self.consumer = None
            turn.release()

    def _prepare(self) -> None:
        """Load kernels while another process applies: half a second that its successor would be late by."""
        if self._is_prepared or time.monotonic() < self._begun + PREPARE_SECONDS:
            return
        from quorin.engine import kernels

        kernels.load(kernels.APPLYING)
        self._is_prepared = True
