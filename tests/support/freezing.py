"""Signals to processes, of which one freezes all threads before a test goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def send_signal(pid: int, number: int) -> None:
    """Send a signal; SIGSTOP has stopped the process when this returns."""
    if number == signal.SIGSTOP:
        freeze(pid)
    else:
        os.kill(pid, number)


def freeze(pid: int, seconds: float = 60) -> None:
    """Stop a process, and wait until all its threads have stopped: until one took the signal, the others run on."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + seconds
    while any(_state(task) not in "TtXZ" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.001)


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:  # The thread has ended.
        return "X"
