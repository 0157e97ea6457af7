"""Freezing processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


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
