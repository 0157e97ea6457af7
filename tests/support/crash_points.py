"""Writers that die or freeze at a named point; run as ``python -m tests.support.crash_points MODE COUNT ...``, with one
mode or several of kill, stop, flip, upgrade and commit.

It prints how many died or froze in each.

The write kernel is compiled once more, with a step before and after each store that matters: taking a free row, the odd
stamp, every copy into the row, the even stamp, the slot word, giving the old row back. A countdown in shared memory
says at which step the process gets its signal. Each case forks, so that hundreds of writers can die for one
compilation, which takes most of the time.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit

from quorin import assembly, layout
from quorin.engine import kernels
from quorin.engine.backend import Bounds
from quorin.engine.consumer.plan import anchor
from quorin.engine.format.abi import DELETE
from quorin.engine.kernels import heap, memory, write
from quorin.engine.memory.growth import grow
from quorin.engine.memory.lock import FileLock
from quorin.engine.rows.batch import delete_batch, to_batch
from quorin.errors import WriterFencedError
from quorin.schema import FeatureField, FeatureSchema, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry

ENTITIES = 12
IDS = [f"entity-with-a-name-that-needs-the-heap-{i}" if i % 3 == 0 else f"id{i}" for i in range(ENTITIES)]


class Crash(FeatureSchema):
    """Rows whose every value is the version, heap values included."""

    version = 1
    fields = [
        FeatureField("version", dtype.int64),
        FeatureField("vector", dtype.float64, (5,)),
        FeatureField("text", dtype.string),
    ]


def batch_of(version: int, ids: list[str] = IDS) -> pa.RecordBatch:
    count = len(ids)
    vector = pa.FixedSizeListArray.from_arrays(np.full(5 * count, float(version)), 5)
    columns = {"version": [version] * count, "vector": vector, "text": [f"text {version}"] * count}
    return to_batch(Crash, pa.table({"entity_id": ids, "event_time_ns": [version] * count, **columns}))


# The countdown lives in memory that a forked child shares with its parent.
_shared = np.frombuffer(mmap.mmap(-1, 4096), np.int64)
COUNTDOWN, SIGNAL = _shared.ctypes.data, _shared.ctypes.data + 8
_raise_signal = getattr(ctypes.CDLL(None), "raise")
_raise_signal.argtypes = [ctypes.c_int]
_raise_signal.restype = ctypes.c_int


@njit
def step() -> None:
    left = memory.load_i64(COUNTDOWN) - 1
    memory.store_i64(COUNTDOWN, left)
    if left == 0:
        _raise_signal(np.int32(memory.load_i64(SIGNAL)))


def stepping(original: Any, arguments: int) -> Any:
    """``original`` with a step before and after."""
    if arguments == 2:

        @njit
        def two(a: Any, b: Any) -> None:
            step()
            original(a, b)
            step()

        return two

    @njit
    def three(a: Any, b: Any, c: Any) -> None:
        step()
        original(a, b, c)
        step()

    return three


@functools.cache
def compile_stepping_kernel() -> Any:
    """``apply_rows`` with steps; each helper that stores is compiled anew, so that it sees them."""
    write.store_release = stepping(memory.store_release, 2)
    heap.copy_bytes = write.copy_bytes = stepping(memory.copy_bytes, 3)
    write.give_back_row = stepping(njit(write.give_back_row.py_func), 2)
    heap.write_variable = write.write_variable = njit(heap.write_variable.py_func)
    write.write_variables = njit(heap.write_variables.py_func)
    for name in ("write_key", "change_body"):
        setattr(write, name, njit(getattr(write, name).py_func))
    return njit(write.apply_rows.py_func)


def in_child(action: Callable[[], None], *, at: int, number: signal.Signals) -> int:
    """Fork, and run ``action`` until the signal at step ``at``; the child's pid. The child exits with 0, or 7 if
    fenced."""
    _shared[0], _shared[1] = at, int(number)
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    except WriterFencedError:
        os._exit(7)
    except BaseException as error:  # noqa: BLE001 - the exit code and this line are the report
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def check_rows(reader: Segment, versions: set[int], *, least: int) -> None:
    """Every row is whole and at one of ``versions``; entities may be missing only if ``versions`` holds 0."""
    for row in assembly.read(reader, IDS).to_pylist():
        if not row["found"]:
            assert 0 in versions, row
            continue
        version = row["version"]
        assert version in versions, (row, versions)
        assert version >= least
        assert row["vector"] == [float(version)] * 5, row
        assert row["text"] == f"text {version}", row
        assert row["event_time_ns"] == version


def check_books(segment: Segment) -> None:
    """After a takeover, counts and free rows are those of the index."""
    header = segment.current_view().header
    assert len(segment) == len(list(layout.iterate_occupied(segment)))
    free = int(header["ring_tail"]) - int(header["ring_head"])
    assert free + len(segment) + int(header["deleted_count"]) == int(header["rows_fresh"]), "a row leaked"


@contextmanager
def segments() -> Iterator[tuple[Segment, Segment]]:
    with tempfile.TemporaryDirectory() as directory:
        shm = Path(directory) / "shm"
        shm.mkdir()
        registry = SegmentRegistry(Path(directory) / "control", shm_dir=shm)
        with registry.create(Crash, capacity=ENTITIES + 4) as segment, registry.open_current(Crash) as reader:
            yield segment, reader
        registry.backend.close()


def kill_at_every_step(count: int) -> int:
    """Kill a writer at step 1, 2, 3 … of a batch of inserts, updates and deletes; the next one goes on from there."""
    kernels.apply_rows = compile_stepping_kernel()
    deaths = 0
    with segments() as (segment, reader):
        version = 1
        for at in range(1, count + 1):
            version += 1

            def write_all(version: int = version) -> None:
                layout.apply_batch(segment, batch_of(version))
                layout.apply_batch(segment, delete_batch(IDS[:3], version), kind=DELETE)
                layout.apply_batch(segment, batch_of(version + 1, IDS[:3]))

            segment.release_writer_lease()
            _, status = os.waitpid(in_child(write_all, at=at, number=signal.SIGKILL), 0)
            assert status in (0, signal.SIGKILL), status
            deaths += status == signal.SIGKILL
            check_rows(reader, {0, version - 1, version, version + 1}, least=version - 1 if version > 2 else 0)
            _shared[0] = 0
            segment.acquire_writer_lease()
            check_books(segment)
            version += 1
            layout.apply_batch(segment, batch_of(version))
            check_rows(reader, {version}, least=version)
            check_books(segment)
    return deaths


def stop_at_every_step(count: int) -> int:
    """Freeze a writer at step 1, 2, 3 …, overtake it, wake it: it is fenced, and no row is damaged."""
    kernels.apply_rows = compile_stepping_kernel()
    overtaken = 0
    with segments() as (segment, reader):
        version = 1
        layout.apply_batch(segment, batch_of(version))
        for at in range(1, count + 1):
            version += 1

            def write_twice(version: int = version) -> None:
                layout.apply_batch(segment, batch_of(version))
                layout.apply_batch(segment, batch_of(version))

            segment.release_writer_lease()
            child = in_child(write_twice, at=at, number=signal.SIGSTOP)
            _, status = os.waitpid(child, os.WUNTRACED)
            assert os.WIFSTOPPED(status), status
            _shared[0] = 0
            check_rows(reader, {version - 1, version}, least=version - 1)
            segment.overtake_writer()
            check_books(segment)
            check_rows(reader, {version - 1, version}, least=version - 1)
            version += 1
            layout.apply_batch(segment, batch_of(version))
            os.kill(child, signal.SIGCONT)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 7, "the sleeper was not fenced"
            check_rows(reader, {version}, least=version)
            check_books(segment)
            overtaken += 1
    return overtaken


def kill_in_mid_flip(count: int) -> int:
    """Kill a writer around each step of a flip: its successor built, locked, exchanged, told to the control plane."""
    from quorin.engine.memory import file as mapping
    from quorin.engine.memory import generations
    from quorin.engine.memory.writer import Writer

    deaths = 0
    places: list[tuple[Any, str]] = [
        (generations, "create_successor"),
        (kernels, "copy_rows"),
        (FileLock, "try_acquire"),
        (kernels, "compare_and_exchange"),
        (Writer, "begin"),
        (Writer, "_is_reachable"),
        (mapping, "unlink"),
    ]
    with segments() as (segment, reader):
        version = 1
        layout.apply_batch(segment, batch_of(version))
        for number in range(count):
            place, name = places[number // 2 % len(places)]
            before = number % 2 == 0

            def flip(place: Any = place, name: str = name, before: bool = before) -> None:
                segment.acquire_writer_lease()
                die_around(place, name, before=before)
                grow(segment, rows=False, heap_bytes=0)

            segment.release_writer_lease()
            _, status = os.waitpid(in_child(flip, at=0, number=signal.SIGKILL), 0)
            assert status == signal.SIGKILL, (name, status)
            deaths += 1
            check_rows(reader, {version}, least=version)
            version += 1
            layout.apply_batch(segment, batch_of(version))
            check_rows(reader, {version}, least=version)
            check_books(segment)
        grow(segment, rows=False, heap_bytes=0)
        left = [path.name for path in segment.current_view().path.parent.glob("quorin_*")]
        assert [name for name in left if not name.endswith(".pending")] == [segment.name], left
    return deaths


def kill_in_mid_upgrade(count: int) -> int:
    """Kill whoever upgrades around each step: rows stay whole, the watchdog takes the rest, the next completes it."""
    from quorin import evolution
    from quorin.engine.backend.sqlite_control import EmbeddedControlPlane
    from quorin.engine.memory import file as mapping
    from quorin.engine.memory import generations
    from quorin.engine.memory.node import Node
    from quorin.engine.memory.segment import Segment
    from quorin.engine.memory.writer import Writer
    from quorin.watchdog import WatchdogState

    places: list[tuple[Any, str]] = [
        (EmbeddedControlPlane, "swap_schema"),
        (generations, "create_successor"),
        (os, "posix_fallocate"),
        (mapping.PendingFile, "publish"),
        (os, "link"),
        (kernels, "copy_rows"),
        (evolution._PendingUpgrade, "is_stored"),
        (Segment, "_flip"),
        (FileLock, "try_acquire"),
        (kernels, "compare_and_exchange"),
        (Writer, "begin"),
        (Node, "swap"),
        (mapping, "unlink"),
    ]
    deaths = 0
    with tempfile.TemporaryDirectory() as directory:
        shm = Path(directory) / "shm"
        shm.mkdir()
        registry = SegmentRegistry(Path(directory) / "control", shm_dir=shm)
        with registry.create(versioned(1), capacity=ENTITIES + 4) as segment:
            layout.apply_batch(segment, batch_of(1))
        reader = registry.open_current(versioned(1))
        for number in range(1, count + 1):
            place, name = places[(number - 1) // 2 % len(places)]
            old, new = versioned(number), versioned(number + 1)

            def upgrade(
                place: Any = place, name: str = name, before: bool = number % 2 == 0, old: Any = old, new: Any = new
            ) -> None:
                die_around(place, name, before=before)
                evolution.upgrade_schema(old, new, registry)

            _, status = os.waitpid(in_child(upgrade, at=0, number=signal.SIGKILL), 0)
            assert status == signal.SIGKILL, (name, status)
            deaths += 1
            check_rows(reader, {1}, least=1)
            with WatchdogState(registry.backend, shm_dir=shm) as watchdog:
                for _ in range(2):
                    watchdog.run_one_tick()
            current = registry.node.current("Crash")
            assert [path.name for path in shm.glob("quorin_*")] == [current], (name, list(shm.iterdir()), current)
            check_rows(reader, {1}, least=1)
            evolution.upgrade_schema(old, new, registry)
            with registry.open_current(new) as newer:
                check_rows(newer, {1}, least=1)
                assert newer.stats()["schema_version"] == number + 1
            check_rows(reader, {1}, least=1)
        reader.close()
        registry.backend.close()
    return deaths


def kill_in_mid_commit(count: int) -> int:
    """Kill a writer around each store of a first position in another log: what is left skips no entry of that log."""
    stores, deaths = 4, 0
    with segments() as (segment, reader):
        for number in range(count):
            old, new = 2 * number + 1, 2 * number + 2
            segment.commit_position(50, old)

            def commit(new: int = new, at: int = number // 2 % stores, before: bool = number % 2 == 0) -> None:
                segment.acquire_writer_lease()
                store, calls = kernels.store_release, iter(range(stores))

                def dying(address: int, word: int) -> None:
                    is_last = next(calls) == at
                    if not (is_last and before):
                        store(address, word)
                    if is_last:
                        os.kill(os.getpid(), signal.SIGKILL)

                kernels.store_release = dying
                segment.commit_position(7, new)

            segment.release_writer_lease()
            _, status = os.waitpid(in_child(commit, at=0, number=signal.SIGKILL), 0)
            assert status == signal.SIGKILL, (number, status)
            deaths += 1
            identity, position = reader.log_identity, reader.position
            assert (identity, position) in {(old, 50), (old, 0), (new, 0), (new, 7)}, (identity, position)
            start = anchor(position=position, log_identity=identity, identity=new, bounds=Bounds(first=1, last=100))
            assert start.after == (7 if (identity, position) == (new, 7) else 0), start
    return deaths


def versioned(number: int) -> Any:
    """The rows of :class:`Crash`, and a field that comes and goes."""
    more = [FeatureField("more", dtype.int32)] if number % 2 == 0 else []
    return make_schema("Crash", [*Crash.fields, *more], version=number)


def die_around(place: Any, name: str, *, before: bool) -> None:
    original = getattr(place, name)

    def dying(*arguments: Any, **named: Any) -> None:
        if not before:
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(place, name, dying)


if __name__ == "__main__":
    modes = {
        "kill": kill_at_every_step,
        "stop": stop_at_every_step,
        "flip": kill_in_mid_flip,
        "upgrade": kill_in_mid_upgrade,
        "commit": kill_in_mid_commit,
    }
    for mode, count in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        sys.stdout.write(f"{mode} {modes[mode](int(count))}\n")
