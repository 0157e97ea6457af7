"""What this machine's processes count, in memory that all of them share.

Each process counts in slots of its own, one for each schema, with plain stores: nothing is locked, and no read waits
for it. A process that reads the counters adds up all slots. A slot outlives its process, and the next process that
counts for the schema goes on with it; so sums only grow, until the machine restarts.

The file is ``quorin-counters-<user>-<layout>`` in the directory of :func:`quorin.engine.memory.file.default_shm_dir`,
mode 0600. Where it cannot be created a process counts for itself, and only itself sees it. Counting never fails.
"""

from __future__ import annotations

import os
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine import forks
from quorin.engine.format.abi import READ_WORDS, W_BATCHES, W_READS
from quorin.engine.memory.file import SlotFile, default_shm_dir
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from quorin.engine.arrays import Int64s, UInt64s

DELAY_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
"""Upper bounds, in seconds, of what ``apply_delay`` is counted in; one bucket more holds the rest."""

REANCHOR_REASONS = ("new_after_trim", "other_log", "shorter", "trimmed")
"""The names of :class:`quorin.engine.consumer.plan.Fit` that are worth counting."""

RECLAIM_REASONS = ("unfinished", "superseded", "never_in_force", "unnamed")
"""The names of :class:`quorin.engine.ops.reclaim_plan.Reason`."""

REFUSAL_REASONS = ("connections", "limits", "malformed", "slow", "token")
"""Why servers refuse requests before an application sees them."""

REQUEST_BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
"""Upper bounds, in seconds, of what the time of a request is counted in; one bucket more holds the rest."""

STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")

CHECKS = ("row_count", "null_share", "range", "mean_drift", "quantile_drift", "freshness")
"""The names of the kinds of :mod:`quorin.engine.checks.declared`."""

NAMES = (
    "entries_appended", "rows_appended", "rows_applied", "rows_ignored", "dead_letters",
    "dead_letters_dropped", *(f"reanchored.{reason}" for reason in REANCHOR_REASONS), "attaches", "growths", "flips",
    "writer_leases", "writer_recoveries", "writers_overtaken", "writers_fenced", "flushes", "flush_ns",
    "entries_trimmed", "history_files_skipped", "upgrades", "watchdog_ticks", "watchdog_dead_processes",
    "watchdog_reclaimed_bytes", *(f"reclaimed.{reason}" for reason in RECLAIM_REASONS), "apply_delay_ns",
    *(f"apply_delay.{number}" for number in range(len(DELAY_BOUNDS) + 1)), "log_events_dropped",
    "stale_reads", *(f"requests_refused.{reason}" for reason in REFUSAL_REASONS),
    *(f"requests.{status}" for status in STATUS_CLASSES), "request_rows", "request_features", "request_ns",
    *(f"request_time.{number}" for number in range(len(REQUEST_BOUNDS) + 1)), "requests_in_flight",
    "replaces", "rows_replaced", "loads_refused", *(f"checks_failed.{check}" for check in CHECKS),
    "flush_failures", "served_rows", "served_requests", "served_dropped", "served_lost", "served_failures",
)  # fmt: skip
"""What the words of a slot count, behind those of :mod:`quorin.engine.format.abi` that kernels count in. Processes with
other names count in another file.
"""

EVERYWHERE = "*"
"""The name of the slot for what belongs to no schema."""

UNKNOWN = "?"
"""The name of the slot for entries of schemas that are unknown."""

_WORD = {name: READ_WORDS + index for index, name in enumerate(NAMES)}
_NAME_BYTES, _HEAD_BYTES, _SLOT_BYTES, _SLOT_COUNT = 192, 256, 2048, 8192
WORD_COUNT = (_SLOT_BYTES - _HEAD_BYTES) // 8
_MAX_PROBES = 512
_LAYOUT = zlib.crc32(repr((READ_WORDS, W_READS, W_BATCHES, NAMES, _SLOT_BYTES, _SLOT_COUNT)).encode())

_log = get_logger(__name__)


def word(name: str) -> int:
    """The index of a counter among a slot's words."""
    return _WORD[name]


def add(schema_name: str, index: int, count: int = 1) -> None:
    """Count something of a schema in this process."""
    state = _state
    with state.lock:
        state.words(schema_name)[index] += count


def add_each(schema_name: str, counts: dict[int, int]) -> None:
    """Count several things of a schema, by their indexes."""
    state = _state
    with state.lock:
        words = state.words(schema_name)
        for index, count in counts.items():
            words[index] += count


def own_words(name: str) -> memoryview:
    """The words that this process counts in under a name, for the only thread that counts there: it needs no lock."""
    known = _state.held.get(name)
    if known is None:
        with _state.lock:
            known = _state.words(name)
    return known


def cell(schema_name: str) -> int:
    """The address of a word that holds, in this process and in each child that it forks, the address of its counters
    for a schema. It stays as long as the process.
    """
    state = _state
    with state.lock:
        return state.cell(schema_name)


def totals(is_wanted: Callable[[str], bool] | None = None) -> dict[str, UInt64s]:
    """The sums over all processes of this machine's user, dead ones included, by the name of the slot; of wanted names,
    or of all.
    """
    sums: dict[str, UInt64s] = {}
    for name, words in _slots(is_wanted, live_only=False):
        sums[name] = sums[name] + words if name in sums else words
    return sums


def live_totals(index: int, is_wanted: Callable[[str], bool]) -> dict[str, int]:
    """The sums of one word over all processes of this machine's user that live, by the wanted names of slots. For words
    that say what holds at this moment.
    """
    sums: dict[str, int] = {}
    for name, words in _slots(is_wanted, live_only=True):
        sums[name] = sums.get(name, 0) + int(words[index])
    return sums


def retire(names: Collection[str]) -> dict[str, int]:
    """Free those slots of these names that no process counts in; what they counted is lost. How many, by name.

    A slot's name is compared while the slot is held, and a process takes a slot only by holding it: so one that is
    taken meanwhile, for whatever name, stays.
    """
    state, retired = _state, dict.fromkeys(names, 0)
    with state.lock:
        file = state.file()
        for number, slot in [] if file is None else file.used():
            if file is None or _name_of(slot) not in retired or (number, os.getpid()) in _held_here:
                continue
            if file.try_hold(number):
                try:
                    name = _name_of(file.head(number, _NAME_BYTES))
                    if name in retired:
                        file.memory(number)[:] = 0
                        retired[name] += 1
                finally:
                    file.let_go(number)
    return {name: count for name, count in retired.items() if count}


def idle_names() -> set[str]:
    """The names of slots that no process counts in."""
    counted = {name for name, _ in _slots(None, live_only=False)}
    return counted.difference(name for name, _ in _slots(None, live_only=True))


def _slots(is_wanted: Callable[[str], bool] | None, *, live_only: bool) -> Iterator[tuple[str, UInt64s]]:
    """The names and words of all slots that are wanted, or of those among them that a living process holds."""
    state = _state
    with state.lock:
        file = state.file()
        private = [(name, np.array(words)) for name, words in state.private.items()]
    yield from (one for one in private if is_wanted is None or is_wanted(one[0]))
    if file is None:
        return
    for number, slot in file.used():
        name = _name_of(slot)
        if not name or (is_wanted is not None and not is_wanted(name)):
            continue
        if not live_only or (number, os.getpid()) in _held_here or file.is_held(number):
            yield name, np.frombuffer(slot, np.uint64, WORD_COUNT, _HEAD_BYTES)


class _State:
    """What a process holds. A forked child begins with slots of its own, and the cells of its parent."""

    def __init__(self) -> None:
        # A warning that is dropped while counters are set up is counted under the same lock.
        self.lock = threading.RLock()
        self.private: dict[str, UInt64s] = {}
        self.held: dict[str, memoryview] = {}
        self._addresses: dict[str, int] = {}
        self._cells: dict[str, Int64s] = {}
        self._file: SlotFile | None = None
        self._tried = False

    def words(self, name: str) -> memoryview:
        """The words that this process counts a schema in."""
        known = self.held.get(name)
        return self._take(name) if known is None else known

    def cell(self, name: str) -> int:
        if name not in self._cells:
            self.words(name)
            self._cells[name] = np.array([self._addresses[name]], np.int64)
        return int(self._cells[name].ctypes.data)

    def file(self) -> SlotFile | None:
        if not self._tried:
            self._tried = True
            path = Path(default_shm_dir()) / f"quorin-counters-{os.geteuid()}-{_LAYOUT:08x}"
            try:
                self._file = SlotFile(path, _SLOT_BYTES, _SLOT_COUNT)
            except OSError as error:
                _log.warning("counters_not_shared", path=str(path), error=str(error))
        return self._file

    def after_fork_in_child(self) -> None:
        """Count in slots of the child's own."""
        self.lock = threading.RLock()
        self.private, self.held, self._addresses = {}, {}, {}
        for name, address in self._cells.items():
            self.words(name)
            address[0] = self._addresses[name]

    def _take(self, name: str) -> memoryview:
        if not self._cells and not self.held:
            forks.register(self)
        memory = self._shared(name)
        if memory is None:
            memory = np.zeros(_SLOT_BYTES, np.uint8)
            self.private[name] = memory[_HEAD_BYTES:].view(np.uint64)
        words = memory[_HEAD_BYTES:].view(np.uint64)
        self._addresses[name] = int(words.ctypes.data)
        self.held[name] = memoryview(words)
        return self.held[name]

    def _shared(self, name: str) -> Any:
        file, key = self.file(), name.encode()[:_NAME_BYTES]
        if file is None:
            return None
        try:
            slot = _free_slot(file, key, os.getpid())
            if slot is None:
                return None
            memory = file.memory(slot)
        except OSError as error:
            _log.warning("counters_not_shared", schema=name, error=str(error))
            return None
        if _name_of(bytes(memory[:_NAME_BYTES])) != name:
            memory[:] = 0
            memory[: len(key)] = np.frombuffer(key, np.uint8)
        return memory


def _free_slot(file: SlotFile, key: bytes, pid: int) -> int | None:
    """A slot that nobody holds, and this process does now: the schema's, else an unused one, else any."""
    first, other = zlib.crc32(key) % file.slot_count, None
    for probe in range(_MAX_PROBES):
        slot = (first + probe) % file.slot_count
        if (slot, pid) in _held_here:
            continue
        found = file.head(slot, _NAME_BYTES).rstrip(b"\0")
        if found in (b"", key):
            if file.try_hold(slot):
                if file.head(slot, _NAME_BYTES).rstrip(b"\0") in (b"", key):
                    _held_here.add((slot, pid))
                    return slot
                file.let_go(slot)
        elif other is None:
            other = slot
    if other is not None and file.try_hold(other):
        _held_here.add((other, pid))
        return other
    return None


def _name_of(slot: bytes) -> str:
    return slot[:_NAME_BYTES].rstrip(b"\0").decode("utf-8", "replace")


_held_here: set[tuple[int, int]] = set()
"""Slots by process: to hold a lock again that one holds already succeeds, so it must not be tried."""
_state = _State()
