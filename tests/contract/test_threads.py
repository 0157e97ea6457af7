"""Threads that Python's ``threading`` does not list use the embedded store like any other."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from quorin.engine.backend import connect

FOREIGN = """
import _thread, ctypes, sys, threading
from quorin.engine.backend import connect

ROUNDS, WORKERS = 150, 3
backend = connect(sys.argv[1])
log, wrong, ended = backend.log(), [], threading.Semaphore(0)

def work():
    try:
        for number in range(ROUNDS):
            (position,) = log.append([("A", b"x" * 5000)])
            assert log.read(position - 1, max_entries=1).entries, position
    except BaseException as error:
        wrong.append(repr(error))
    ended.release()

def by_thread():
    for _ in range(WORKERS):
        _thread.start_new_thread(work, ())

def by_pthread():
    library = ctypes.CDLL(None)
    for _ in range(WORKERS):
        started.append(routine(lambda _: work()))
        assert library.pthread_create(ctypes.byref(ctypes.c_ulong()), None, started[-1], None) == 0

routine, started = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p), []
{"thread": by_thread, "pthread": by_pthread}[sys.argv[2]]()
missing = WORKERS
while missing:
    # Each of these needs a connection too, and comes while the others use theirs.
    short = threading.Thread(target=backend.control.schemas)
    short.start()
    short.join()
    missing -= ended.acquire(timeout=0.001)
assert not wrong, wrong
assert log.sizes()[0] == ROUNDS * WORKERS
"""


@pytest.mark.parametrize("kind", ["thread", "pthread"])
def test_threads_that_threading_does_not_know_keep_their_connections(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FOREIGN, str(tmp_path / "store"), kind],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_that_have_ended_leave_few_connections_open(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    backend = connect(directory)

    def run_at_once(count: int) -> None:
        together = threading.Barrier(count)

        def wait_for_all() -> None:
            with backend._database.connection():  # type: ignore[attr-defined]
                together.wait(120)

        threads = [threading.Thread(target=wait_for_all) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for _ in range(50):
        run_at_once(1)
    assert open_files(directory) == 1
    run_at_once(40)
    assert open_files(directory) == 16
    backend.close()
    assert open_files(directory) == 0


def test_a_connection_that_is_in_use_is_closed_by_the_call_that_uses_it(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    backend = connect(directory)
    with backend._database.connection() as connection:  # type: ignore[attr-defined]
        backend.close()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert open_files(directory) == 0


def open_files(directory: Path) -> int:
    """How many connections this process has. SQLite keeps files of closed ones open that locks are on, but not logs."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link.readlink() for link in links].count(directory / "quorin.db-wal")
