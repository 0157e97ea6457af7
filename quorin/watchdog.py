"""The watchdog: reclaims what dead processes left behind, and nothing else.

Serving works without it: a dead writer's lease ends with the process, and leftover files only take space. It removes
the entries of dead processes, and segment files of its own namespace that no process has mapped, locked or pinned and
that no read can reach: unfinished files, replaced generations, generations that never came into force, and lines that
the node's file does not name, with their kept generations. :mod:`quorin.engine.ops.reclaim_plan` decides what to do.

It also retires the counters of schemas that are gone: those that the control plane does not have, that no deployment
has a segment of on this machine, and that no process counts for.

It sees the processes of its own host, user and process-id namespace. Run it where it sees the processes to watch.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quorin import metrics
from quorin.engine.backend import connect
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.counting import counters
from quorin.engine.counting.requests import is_schema
from quorin.engine.format.name import SegmentName
from quorin.engine.memory import file as mapping
from quorin.engine.memory.kept import parse_kept
from quorin.engine.memory.lock import FileLock, is_locked
from quorin.engine.memory.node import Node
from quorin.engine.memory.pins import is_pinned, remove_unpinned
from quorin.engine.ops import presence
from quorin.engine.ops.reclaim_plan import Decision, SegmentFile, State, decide
from quorin.engine.paths import absolute
from quorin.errors import ConnectionFailedError, SegmentNotFoundError
from quorin.logging import get_logger
from quorin.shm import default_shm_dir

if TYPE_CHECKING:
    from quorin.engine.backend import Connection

__all__ = ["Reclaimed", "TickResult", "WatchdogState", "run_forever"]

DEFAULT_MISS_THRESHOLD = 2
DEFAULT_TICK_INTERVAL_SECONDS = 5.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """A removed file and the reason."""

    name: str
    byte_count: int
    reason: str


@dataclass(frozen=True, slots=True)
class TickResult:
    """What one tick did, or would have done in a dry run. ``retired`` has the schemas whose counters went.

    ``suspected`` counts what will be reclaimed if the following ticks find it orphaned too.
    """

    reclaimed: tuple[Reclaimed, ...]
    dead_processes: tuple[str, ...]
    repointed: tuple[str, ...]
    retired: tuple[str, ...]
    suspected: int
    foreign_files: int
    elapsed_seconds: float
    dry_run: bool = False


class WatchdogState:
    """The watchdog's state between ticks: for how many consecutive ticks each thing has been orphaned.

    It reclaims what has been orphaned for ``miss_threshold`` consecutive ticks. ``shm_dir`` is the directory of the
    namespace's segments, with the default of :class:`quorin.shm.SegmentRegistry`.

    :raises SegmentNotFoundError: if it is not a directory. :raises ValueError: for a threshold below 1.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        miss_threshold: int = DEFAULT_MISS_THRESHOLD,
        shm_dir: str | os.PathLike[str] | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        dry_run: bool = False,
    ) -> None:
        if isinstance(miss_threshold, bool) or not isinstance(miss_threshold, int) or miss_threshold < 1:
            raise ValueError(f"miss_threshold must be a whole number from 1, got {miss_threshold!r}")
        self._directory = absolute(default_shm_dir() if shm_dir is None else shm_dir)
        if not self._directory.is_dir():
            raise SegmentNotFoundError(f"shm_dir {str(self._directory)!r} is not a directory")
        self._backend = connect(connection, namespace=namespace)
        self._node = Node(self._directory, self._backend)
        self._owns_backend = self._backend is not connection
        self._miss_threshold = miss_threshold
        self._dry_run = dry_run
        self._misses: dict[str, int] = {}

    def __enter__(self) -> WatchdogState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, unless the caller passed an open backend."""
        if self._owns_backend:
            self._backend.close()

    def run_one_tick(self) -> TickResult:
        """Observe, decide, act. After a crash in between, the next tick of any watchdog does the rest.

        :raises ConnectionFailedError: if the control plane cannot be reached.
        """
        started = time.monotonic()
        control = self._backend.control
        node = self._node.state()
        currents = dict(node.currents)
        state = State(
            identities=frozenset({node.identity, *node.former}),
            currents=currents,
            files=_files(self._directory, set(currents.values())),
            processes=presence.announced(control),
            schemas=frozenset(control.schemas()) | _schemas_of_segments({self._directory, absolute(default_shm_dir())}),
            counted=frozenset(filter(is_schema, counters.idle_names())),
        )
        decision = decide(state, self._misses, threshold=self._miss_threshold)
        self._misses = dict(decision.misses)
        retired = decision.retire if self._dry_run else tuple(counters.retire(decision.retire))
        reclaimed, withdrawn, repointed = self._act(decision)
        metrics.watchdog_ticks.inc()
        return TickResult(
            reclaimed=reclaimed,
            dead_processes=withdrawn,
            repointed=repointed,
            retired=retired,
            suspected=len(decision.misses) - len(reclaimed) - len(withdrawn) - len(repointed) - len(retired),
            foreign_files=decision.foreign_files,
            elapsed_seconds=time.monotonic() - started,
            dry_run=self._dry_run,
        )

    def _act(self, decision: Decision) -> tuple[tuple[Reclaimed, ...], tuple[str, ...], tuple[str, ...]]:
        control = self._backend.control
        if self._dry_run:
            would = tuple(Reclaimed(file.name, file.byte_count, reason.value) for file, reason in decision.unlink)
            return would, decision.withdraw, tuple(new for _, _, new in decision.repoint)
        repointed = [new for schema, old, new in decision.repoint if self._node.swap(schema, new, expected=old)]
        withdrawn = [process for process in decision.withdraw if control.withdraw(process)]
        reclaimed = []
        for file, reason in decision.unlink:
            if file.name not in self._node.currents().values() and _remove(self._directory / file.name, file):
                reclaimed.append(Reclaimed(file.name, file.byte_count, reason.value))
                metrics.watchdog_reclaimed_files.labels(reason.name).inc()
                metrics.watchdog_reclaimed_bytes.inc(file.byte_count)
                _log.info("file_reclaimed", segment=file.name, size=file.byte_count, reason=reason.value)
        for process in withdrawn:
            metrics.watchdog_dead_processes.inc()
            _log.info("dead_process_withdrawn", process=process)
        for name in repointed:
            _log.info("current_segment_repointed", segment=name)
        return tuple(reclaimed), tuple(withdrawn), tuple(repointed)


def run_forever(
    connection: Connection,
    *,
    tick_interval_seconds: float = DEFAULT_TICK_INTERVAL_SECONDS,
    stop_event: threading.Event | None = None,
    miss_threshold: int = DEFAULT_MISS_THRESHOLD,
    shm_dir: str | os.PathLike[str] | None = None,
    namespace: str = DEFAULT_NAMESPACE,
) -> None:
    """Tick until ``stop_event`` is set. An unreachable control plane delays a tick, and is logged once."""
    stop = threading.Event() if stop_event is None else stop_event
    unreachable = False
    with WatchdogState(connection, miss_threshold=miss_threshold, shm_dir=shm_dir, namespace=namespace) as state:
        while not stop.is_set():
            try:
                state.run_one_tick()
                unreachable = False
            except ConnectionFailedError as error:
                if not unreachable:
                    _log.warning("control_plane_unreachable", error=str(error))
                unreachable = True
            stop.wait(tick_interval_seconds)


def _schemas_of_segments(directories: set[Path]) -> frozenset[str]:
    """The schemas that have a segment's file, finished or not, of any deployment."""
    entries = (entry.name for directory in directories if directory.is_dir() for entry in os.scandir(directory))
    names = (SegmentName.match(mapping.parse_pending(name)[0]) for name in entries)
    return frozenset(name.schema for name in names if name is not None)


def _files(directory: Path, currents: set[str]) -> tuple[SegmentFile, ...]:
    """The files of a directory that look like this user's segments, finished or unfinished.

    Testing for a lock takes the lock, which could disturb a writer. So only files that no process has mapped and that
    are not current are tested.
    """
    mapped = presence.mapped_inodes(directory)
    files = []
    for entry in os.scandir(directory):
        name, owner = mapping.parse_pending(entry.name)
        pending = owner is not None
        kept = parse_kept(directory / entry.name)
        segment = SegmentName.match(name) if kept is None else kept.name
        if segment is None or not entry.is_file(follow_symlinks=False):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        path = directory / entry.name
        header = None if pending else mapping.read_header(path)
        if os.geteuid() not in (0, status.st_uid) or (header is None and not pending):
            continue
        successor = 0 if header is None else int(header["successor"])
        files.append(
            SegmentFile(
                name=entry.name,
                line=segment.line,
                generation=segment.generation,
                owner=int(owner or 0) if header is None else int(header["owner"]),
                held=(status.st_dev, status.st_ino) in mapped
                or is_pinned(path)
                or (name not in currents and is_locked(path)),
                pending=pending,
                kept=kept is not None,
                successor=successor if successor > segment.generation else 0,
                was_in_force=header is not None and int(header["epoch"]) > 0,
                byte_count=status.st_size,
                inode=status.st_ino,
            )
        )
    return tuple(files)


def _remove(path: Path, file: SegmentFile) -> bool:
    """Remove a file if it is still the observed one, and no process holds it."""
    try:
        lock = FileLock.try_acquire(path)
        if lock is None:
            return False
        try:
            status = path.stat()
            if status.st_ino != file.inode or (status.st_dev, status.st_ino) in presence.mapped_inodes(path.parent):
                return False
            return remove_unpinned(path)
        finally:
            lock.release()
    except (SegmentNotFoundError, FileNotFoundError):
        return False
