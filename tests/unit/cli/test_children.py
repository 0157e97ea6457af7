"""Processes that commands start: which installation they run, and that nothing outlives the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quorin.cli import children
from quorin.cli.children import ChildFailedError, running

BENCH = [str(Path(sys.executable).with_name("quorin")), "bench", "--entities", "1000"]


def test_a_block_begins_when_its_process_is_ready_and_ends_it(tmp_path):
    with running(write_then_wait, tmp_path / "pid"):
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
    assert not is_alive(pid)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "_MAX_STOP_SECONDS", 0.2)
    with running(write_then_ignore, tmp_path / "pid"):
        pid = int((tmp_path / "pid").read_text())
    assert not is_alive(pid)


def test_a_process_that_fails_is_one_error():
    with pytest.raises(ChildFailedError, match="failed: ValueError: no such thing"), running(fail):
        pass
    with pytest.raises(ChildFailedError, match="ended before it was ready"), running(vanish):
        pass


def test_bench_runs_one_installation_wherever_it_is_started(tmp_path):
    (tmp_path / "quorin").mkdir()
    (tmp_path / "quorin" / "__init__.py").write_text("raise RuntimeError('the package of the working directory')")
    done = subprocess.run([*BENCH, "--seconds", "0.1"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "write until served" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_bench_leaves_no_process_and_no_directory_when_it_is_stopped(tmp_path, number):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "QUORIN_SHM_DIR": str(tmp_path)}
    command = subprocess.Popen(
        [*BENCH, "--seconds", "5"], cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    # One that has started: Python itself reports that the parent of a process was killed while that started.
    wait_for(lambda: any(maps_a_segment(pid) for pid in processes_of(session=command.pid) if pid != command.pid))
    if number == signal.SIGKILL:
        command.kill()
    else:
        os.killpg(command.pid, number)  # As a terminal and a service manager do.
    printed, _ = command.communicate(timeout=60)
    assert "Traceback" not in printed
    wait_for(lambda: not processes_of(session=command.pid))
    if number != signal.SIGKILL:
        assert command.returncode in (1, 128 + number)
        assert list(tmp_path.glob("quorin-bench-*")) == []


def write_then_wait(ready: Callable[[], None], path: Path) -> None:
    path.write_text(str(os.getpid()))
    ready()
    signal.pause()


def write_then_ignore(ready: Callable[[], None], path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write_then_wait(ready, path)


def fail(ready: Callable[[], None]) -> None:
    raise ValueError("no such thing")


def vanish(ready: Callable[[], None]) -> None:
    os._exit(3)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def maps_a_segment(pid: int) -> bool:
    try:
        return "/quorin_" in Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(session: int) -> list[int]:
    """The processes of a session, except those that only wait for their parent to look at them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
