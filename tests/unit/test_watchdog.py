"""The watchdog on real processes and files: what the dead held is taken away, the living keep all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin import layout
from quorin.assembly import assemble
from quorin.engine.backend import Backend, connect
from quorin.engine.memory import file as mapping
from quorin.engine.ops import presence
from quorin.errors import ConnectionFailedError, SegmentNotFoundError
from quorin.metrics import registry as series
from quorin.shm import SegmentRegistry
from quorin.watchdog import TickResult, WatchdogState, run_forever
from tests.support.consumers import kill, start
from tests.support.freezing import freeze
from tests.support.schemas import Scalars

fork = multiprocessing.get_context("fork")


class Place:
    def __init__(self, connection: str, shm_dir: Path, namespace: str = "quorin") -> None:
        self.connection, self.shm_dir, self.namespace = connection, shm_dir, namespace
        self.backend: Backend = connect(connection, namespace=namespace)
        self.registry = SegmentRegistry(self.backend, shm_dir=shm_dir)
        self.watchdog = WatchdogState(self.backend, shm_dir=shm_dir)

    def files(self) -> set[str]:
        return {path.name for path in self.shm_dir.glob("quorin_*")}

    def ticks(self, count: int = 2) -> list[TickResult]:
        return [self.watchdog.run_one_tick() for _ in range(count)]

    def segment(self) -> str:
        with self.registry.create(Scalars, capacity=10) as segment:
            layout.insert(segment, "x", layout.pack_row(Scalars, a=1.0, b=2.0, c=3.0, d=4.0))
            return segment.name


@pytest.fixture(params=["embedded", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    connection = str(tmp_path / "store") if request.param == "embedded" else str(request.getfixturevalue("redis_url"))
    (tmp_path / "shm").mkdir()
    opened = Place(connection, tmp_path / "shm")
    yield opened
    opened.backend.close()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def be_there(connection: str, shm_dir: str, ready: str, kind: str) -> None:
    """Announce this process, hold something of a segment, and stay."""
    backend = connect(connection)
    registry = SegmentRegistry(backend, shm_dir=shm_dir)
    presence.announce(backend.control, "test", "", {})
    held: Any = None
    if kind == "reader":
        held = registry.open_current(Scalars)
        assemble(held, "x")
    elif kind == "unnamed":
        held = registry.create(Scalars, capacity=10, set_current=False)
    elif kind == "creator":
        held = mapping.PendingFile(
            Path(shm_dir, "quorin_Scalars_0123456789ab00000001"), 4096, owner=backend.control.identity()
        )
    elif kind == "forker":
        held = registry.create(Scalars, capacity=10, set_current=False)
        if os.fork():
            Path(ready).touch()
            os._exit(0)
    Path(ready).touch()
    time.sleep(600)
    del held


def started(place: Place, tmp_path: Path, kind: str) -> Any:
    ready = tmp_path / f"ready-{kind}"
    process = start(be_there, place.connection, str(place.shm_dir), str(ready), kind)
    until(ready.exists)
    return process


@pytest.mark.parametrize("kind", ["unnamed", "creator"])
def test_what_a_killed_creator_left_goes_within_two_ticks(place: Place, tmp_path: Path, kind: str) -> None:
    current = place.segment()
    process = started(place, tmp_path, kind)
    before = place.files()
    assert len(before) == 2
    assert [(tick.reclaimed, tick.dead_processes) for tick in place.ticks(3)] == [((), ())] * 3
    freeze(process.pid)
    assert [(tick.reclaimed, tick.dead_processes) for tick in place.ticks(3)] == [((), ())] * 3
    assert place.files() == before
    kill(process)
    first, second, third = place.ticks(3)
    assert (first.reclaimed, first.dead_processes, first.suspected) == ((), (), 2)
    (gone,) = second.reclaimed
    assert {gone.name} == before - {current}
    assert gone.byte_count > 0
    assert len(second.dead_processes) == 1
    assert str(process.pid) in second.dead_processes[0]
    assert (third.reclaimed, third.dead_processes, third.suspected) == ((), (), 0)
    assert place.files() == {current}
    assert place.backend.control.processes() == {}
    assert place.registry.node.current("Scalars") == current


def test_a_replaced_generation_goes_when_its_last_reader_does(place: Place, tmp_path: Path) -> None:
    old = place.segment()
    process = started(place, tmp_path, "reader")
    with place.registry.open_current(Scalars, read_only=False) as writer:
        writer.acquire_writer_lease()
        os.link(place.shm_dir / old, tmp_path / "kept")
        new = place.registry.create(Scalars, capacity=10).name
        os.link(tmp_path / "kept", place.shm_dir / old)  # As if its writer had died before it removed it.
    (tmp_path / "kept").unlink()
    assert [tick.reclaimed for tick in place.ticks(3)] == [()] * 3
    assert place.files() == {old, new}
    kill(process)
    assert [len(tick.reclaimed) for tick in place.ticks(2)] == [0, 1]
    assert place.files() == {new}


def test_a_forked_child_holds_what_its_parent_left(place: Place, tmp_path: Path) -> None:
    started(place, tmp_path, "forker").join(60)
    (name,) = place.files()
    assert [tick.reclaimed for tick in place.ticks(3)] == [()] * 3
    (holder,) = presence.mapping_processes(place.shm_dir)[name]
    os.kill(holder.pid, signal.SIGKILL)
    until(lambda: name not in presence.mapping_processes(place.shm_dir))
    assert [len(tick.reclaimed) for tick in place.ticks(2)] == [0, 1]
    assert place.files() == set()


def test_who_left_without_closing_keeps_nothing(place: Place, tmp_path: Path) -> None:
    current = place.segment()
    process = started(place, tmp_path, "reader")
    kill(process)
    assert place.ticks(2)[1].dead_processes
    assert place.files() == {current}
    with place.registry.open_current(Scalars) as reader:
        assert assemble(reader, "x").tolist() == [1.0, 2.0, 3.0, 4.0]


def test_zombies_and_reused_numbers(place: Place, tmp_path: Path) -> None:
    process = fork.Process(target=time.sleep, args=(600,))
    process.start()
    start_time = presence.Process(socket.gethostname(), process.pid or 0, 0)
    stat = Path(f"/proc/{process.pid}/stat")
    words = stat.read_text().rpartition(")")[2].split()
    alive = presence.Process(start_time.host, start_time.pid, int(words[19]))
    reused = presence.Process(alive.host, alive.pid, alive.start - 1)
    elsewhere = presence.Process("another-host", 1, 1)
    report = json.dumps({"role": "test", "heartbeat_ns": 0, "schemas": {}})
    for announced in (alive, reused, elsewhere):
        place.backend.control.announce(str(announced), report)
    assert place.ticks(2)[1].dead_processes == (str(reused),)
    os.kill(alive.pid, signal.SIGKILL)
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
    assert place.ticks(3)[2].dead_processes == ()
    assert {report.process for report in presence.reports(place.backend.control)} == {alive, elsewhere}
    process.join(60)
    assert place.ticks(2)[1].dead_processes == (str(alive),)


def hold_with_a_thread(path: str, ready: str) -> None:
    """Map a file, and end the first thread of the process while another lives on."""
    segment = mapping.attach(Path(path), writable=False, least_bytes=1)

    def stay() -> None:
        Path(ready).touch()
        time.sleep(600)
        del segment_of[0]

    segment_of = [segment]
    threading.Thread(target=stay).start()
    import ctypes

    ctypes.CDLL(None).pthread_exit(None)


def test_a_process_whose_first_thread_ended_still_holds(place: Place, tmp_path: Path) -> None:
    with place.registry.create(Scalars, capacity=10, set_current=False) as segment:
        path = segment.current_view().path
        # Not forked from a process that has imported half the world: a thread that exits runs what all of that left.
        process = multiprocessing.get_context("spawn").Process(
            target=hold_with_a_thread, args=(str(path), str(tmp_path / "ready"))
        )
        process.start()
        until((tmp_path / "ready").exists)
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert [tick.reclaimed for tick in place.ticks(3)] == [()] * 3
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert [len(tick.reclaimed) for tick in place.ticks(2)] == [0, 1]


def test_namespaces_side_by_side_leave_each_other_alone(place: Place, tmp_path: Path) -> None:
    others = [
        Place(place.connection, place.shm_dir, "other"),
        Place(str(tmp_path / "another-store"), place.shm_dir),
    ]
    names = [each.segment() for each in (place, *others)]
    for each in (place, *others):
        each.registry.create(Scalars, capacity=10, set_current=False).close()  # An orphan of each.
    foreign = place.shm_dir / "quorin_Scalars_0123456789ab00000001"
    foreign.write_bytes(b"not Quorin's, whatever its name says")
    (place.shm_dir / "something-else").write_bytes(b"")
    (place.shm_dir / "quorin_Scalars_fedcba98765400000001").symlink_to(place.shm_dir / names[1])
    before = place.files()
    result = place.ticks(2)[1]
    assert len(result.reclaimed) == 1
    assert result.foreign_files == 4
    gone = {reclaimed.name for reclaimed in result.reclaimed}
    assert place.files() == before - gone
    for each in others:
        assert len(each.ticks(2)[1].reclaimed) == 1
    assert {name for name in place.files() if name in names} == set(names)
    for each in (place, *others):
        with each.registry.open_current(Scalars) as reader:
            assert assemble(reader, "x").tolist() == [1.0, 2.0, 3.0, 4.0]
    assert foreign.exists()
    for each in others:
        each.backend.close()


def test_a_dry_run_says_the_same_and_touches_nothing(place: Place, tmp_path: Path) -> None:
    place.segment()
    kill(started(place, tmp_path, "unnamed"))
    before, processes = place.files(), place.backend.control.processes()
    with WatchdogState(place.backend, shm_dir=place.shm_dir, dry_run=True, miss_threshold=1) as dry:
        would = dry.run_one_tick()
    assert (place.files(), place.backend.control.processes()) == (before, processes)
    with WatchdogState(place.backend, shm_dir=place.shm_dir, miss_threshold=1) as wet:
        did = wet.run_one_tick()
    assert would.dry_run
    assert not did.dry_run
    assert (would.reclaimed, would.dead_processes) == (did.reclaimed, did.dead_processes)
    assert len(place.files()) == 1


def sample(name: str, **labels: str) -> float:
    return series.get_sample_value(name, labels) or 0.0


def test_it_runs_until_told_to_stop_and_counts(place: Place, tmp_path: Path) -> None:
    current = place.segment()
    process = started(place, tmp_path, "unnamed")
    before = [sample("quorin_watchdog_ticks_total"), sample("quorin_watchdog_reclaimed_files_total", reason="unnamed")]
    stop = threading.Event()
    options = {"tick_interval_seconds": 0.02, "stop_event": stop, "shm_dir": place.shm_dir}
    thread = threading.Thread(target=run_forever, args=(place.connection,), kwargs=options)
    thread.start()
    try:
        until(lambda: sample("quorin_watchdog_ticks_total") > before[0] + 2)
        assert len(place.files()) == 2
        kill(process)
        until(lambda: place.files() == {current} and place.backend.control.processes() == {})
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert sample("quorin_watchdog_reclaimed_files_total", reason="unnamed") == before[1] + 1
    assert sample("quorin_watchdog_dead_processes_total") >= 1
    assert sample("quorin_watchdog_reclaimed_bytes_total") > 4096


def test_wrong_arguments_and_lost_control_planes_are_named(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="miss_threshold"):
        WatchdogState(place.backend, miss_threshold=0)
    with pytest.raises(SegmentNotFoundError, match="nowhere"):
        WatchdogState(place.backend, shm_dir=tmp_path / "nowhere")
    current = place.segment()
    place.backend.close()
    with pytest.raises(ConnectionFailedError):
        place.watchdog.run_one_tick()
    assert place.files() == {current}
