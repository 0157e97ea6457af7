"""Moves records from the rings of a node into files: one collector a node, a thread of one of its processes.

The room of records goes back to their writers once the file with them has its name. Before, the file's path and the
new tails are written beside the ring file: whoever collects next finishes, or forgets, what a dead collector began. So
a record is in one file, whatever is killed when.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quorin import metrics
from quorin.engine import exits, forks
from quorin.engine.format.abi import UNPACKED_NUMBERS, UNPACKED_TEXTS
from quorin.engine.memory.lock import FileLock
from quorin.engine.served import description
from quorin.engine.served.files import SCHEMA
from quorin.engine.served.ring import CAPACITY, Ring, ring_file
from quorin.errors import QuorinError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quorin.engine.served.files import ServedFiles

LOOK_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 10.0
_FULL = CAPACITY // 4
"""A file is written as soon as a ring has as many bytes."""
_LOCK_ATTEMPTS = 200
_MAX_END_SECONDS = 1.0

_log = get_logger(__name__)


class Collecting:
    """The collector of a ring file in this process: :meth:`start` a thread, or :meth:`collect` at once."""

    def __init__(self, path: Path, files: ServedFiles, every_seconds: float) -> None:
        self._collector = Collector(path, files, every_seconds)
        self._worker: _Worker | None = None
        self._starting = threading.Lock()
        forks.register(self)

    def start(self) -> None:
        """Start the thread, unless it runs."""
        with self._starting:
            if self._worker is None:
                # The thread must not refer to this object, so that it ends with it.
                self._worker = worker = _Worker(self._collector)
                weakref.finalize(self, worker.ending.set)
                exits.register(worker)
                worker.start()

    def stop(self) -> None:
        """Stop the thread, and wait for it."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.ending.set()
            worker.join()

    def collect(self) -> int:
        """Write what there is now; returns the number of rows. Waits for a collector that is writing."""
        for _ in range(_LOCK_ATTEMPTS):
            with self._collector.writing:
                if self._collector.is_held:
                    return self._collector.collect()
            lock = self._collector.lock()
            if lock is not None:
                try:
                    return self._collector.collect()
                finally:
                    lock.release()
            time.sleep(LOOK_SECONDS)
        return 0

    def after_fork_in_child(self) -> None:
        """The thread is not in the child."""
        self._starting = threading.Lock()
        self._worker = None
        self._collector.after_fork_in_child()


class Collector:
    """Writes files from the rings at a path. Its lock makes it the only one of the node."""

    def __init__(self, path: Path, files: ServedFiles, every_seconds: float) -> None:
        self.is_held = False
        """Whether the thread of this process is the node's collector."""
        self._path = path
        self._files = files
        self._every_seconds = every_seconds
        self._begun = path.with_name(f"{path.name}.begun")
        self.writing = threading.RLock()
        self._last = time.monotonic()

    def lock(self) -> FileLock | None:
        """The lock of the node's collector; None if another has it."""
        path = self._path.with_name(f"{self._path.name}.lock")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        return FileLock.try_acquire(path)

    def is_due(self) -> bool:
        """Whether a file is to be written: one was not for a while, or a ring fills."""
        sizes = [head - tail for tail, head in (ring.unread for ring in ring_file(self._path).rings())]
        if not any(sizes):
            self._last = time.monotonic()
        return any(sizes) and (time.monotonic() > self._last + self._every_seconds or max(sizes) > _FULL)

    def collect(self) -> int:
        """Write a file with all that is in the rings; returns the number of its rows.

        :raises ServedLogUnavailableError: if that fails; the records stay.
        """
        with self.writing:
            self._finish()
            rings = ring_file(self._path)
            found = list(rings.rings())
            table, tails, requests = _unpacked(found, self._path)
            if tails:
                path = self._files.new_path()
                self._begin(path, tails)
                if table.num_rows:
                    self._files.write(path, table)
                    metrics.served_rows.inc(table.num_rows)
                    metrics.served_requests.inc(requests)
                self._finish(is_written=True)
            for ring in found:
                if not rings.has_holder(ring):
                    rings.reclaim(ring)
            self._last = time.monotonic()
            return int(table.num_rows)

    def after_fork_in_child(self) -> None:
        """The parent's thread is the collector."""
        self.is_held = False
        self.writing = threading.RLock()

    def leave(self) -> None:
        """Write what there is when the process ends, unless that may take long."""
        lock = self.lock() if self._files.is_local else None
        if lock is not None:
            self.collect()
            lock.release()

    def _begin(self, path: str, tails: dict[int, int]) -> None:
        aside = self._begun.with_name(f"{self._begun.name}.{secrets.token_hex(4)}.pending")
        try:
            aside.touch(mode=0o600, exist_ok=False)
            aside.write_text(json.dumps({"path": path, "tails": tails}))
            aside.replace(self._begun)
        finally:
            aside.unlink(missing_ok=True)

    def _finish(self, *, is_written: bool = False) -> None:
        """Finish what was begun: if the file has its name, its records go."""
        try:
            begun = json.loads(self._begun.read_text())
        except FileNotFoundError:
            return
        if is_written or self._files.has(begun["path"]):
            tails = {int(number): int(tail) for number, tail in begun["tails"].items()}
            for ring in ring_file(self._path).rings():
                if tails.get(ring.number, 0) > ring.unread[0]:
                    ring.consume(tails[ring.number])
        self._begun.unlink(missing_ok=True)


class _Worker(threading.Thread):
    """The thread: collects while the lock is free, until it is ended."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(name="quorin-served", daemon=True)
        self.ending = threading.Event()
        self._collector = collector
        self._pid = os.getpid()

    def run(self) -> None:
        """Collect whenever no other process of the node does."""
        reported, pause = "", LOOK_SECONDS
        while not self.ending.wait(pause):
            try:
                self._collect_if_free()
                reported, pause = "", LOOK_SECONDS
            except Exception as error:  # noqa: BLE001 - a thread that ended would fill the rings, unseen
                metrics.served_failures.inc()
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
                if repr(error) != reported:
                    reported = repr(error)
                    expected = isinstance(error, (QuorinError, OSError))
                    _log.error("served_log_not_written", error=str(error), exc_info=not expected)

    def at_exit(self) -> None:
        """Write what there is, if it is written to a disk of this machine; else another process does."""
        self.ending.set()
        if self._pid == os.getpid():
            self.join(_MAX_END_SECONDS)  # It may hold the lock of the collector.
            with suppress(QuorinError, OSError):
                self._collector.leave()

    def _collect_if_free(self) -> None:
        lock = self._collector.lock()
        if lock is None:
            return
        try:
            self._collector.is_held = True
            while not self.ending.wait(LOOK_SECONDS):
                if self._collector.is_due():
                    self._collector.collect()
        finally:
            with self._collector.writing:
                self._collector.is_held = False
                lock.release()


def _unpacked(rings: list[Ring], path: Path) -> tuple[pa.Table, dict[int, int], int]:
    """The records of rings as rows of a file; the new tail of each ring that has any; and the number of requests."""
    from quorin.engine import kernels

    spans, totals = [], np.zeros(5, np.int64)
    for ring in rings:
        first, last = ring.unread
        if first < last:
            good = kernels.measure_records(ring.address, first, last, totals)
            if good < last:
                metrics.served_lost.inc()
                _log.error("served_log_damaged", ring=ring.number, path=str(path), skipped_bytes=last - good)
            spans.append((ring, first, good, last))
    requests, rows, key_bytes, id_bytes, data_bytes = totals.tolist()
    numbers, states = np.empty((UNPACKED_NUMBERS, rows), np.int64), np.empty(rows, np.uint8)
    ends = np.zeros((UNPACKED_TEXTS, rows + 1), np.int64)
    texts = [np.empty(size, np.uint8) for size in (key_bytes, id_bytes, data_bytes)]
    counts = np.zeros(2, np.int64)
    for ring, first, good, _ in spans:
        kernels.unpack_records(ring.address, first, good, counts, numbers, states, ends, *texts)
    table = _table(numbers, states, map(_texts, ends, texts), path)
    return table, {ring.number: last for ring, _, _, last in spans}, requests


def _table(numbers: Any, states: Any, texts: Iterable[pa.Array], path: Path) -> pa.Table:
    requests, rows, views, times, kinds, positions, event_times = numbers
    keys, ids, data = texts
    names, described = _described(views, kinds, path)
    columns = [
        pa.array(requests),
        _null_if_empty(ids).cast(pa.string(), safe=False),
        pa.array(times).cast(pa.timestamp("ns", "UTC")),
        pa.array(rows.astype(np.int32)),
        names,
        keys.cast(pa.string(), safe=False),
        pa.array(positions),
        pa.array(event_times),
        pa.array(states),
        described,
        _null_if_empty(data),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _described(views: Any, kinds: Any, path: Path) -> tuple[pa.Array, pa.Array]:
    """The name of each row's view, and the description of its request; null for one that is gone."""
    known, codes = np.unique(kinds, return_inverse=True)
    texts = [description.kept(path, int(number)) for number in known]
    names: list[str | None] = []
    starts = []
    for text in texts:
        starts.append(len(names))
        found = [] if text is None else [view.name for view in description.Description.from_json(text).views]
        names += found or [None]
    at = np.array(starts, np.int64)[codes] if len(known) else codes
    ends_at = np.array([*starts[1:], len(names)], np.int64)[codes] if len(known) else codes
    index = np.minimum(at + views, ends_at - 1)
    return pa.array(names, pa.string()).take(pa.array(index)), pa.array(texts, pa.string()).take(pa.array(codes))


def _texts(ends: Any, text: Any) -> pa.Array:
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_binary(), len(ends) - 1, buffers).cast(pa.binary())


def _null_if_empty(texts: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return pc.if_else(pc.equal(pc.binary_length(texts), 0), pa.scalar(None, texts.type), texts)
