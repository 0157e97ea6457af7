"""Who is there: processes that say so in the control plane, and processes that have a segment's memory mapped.

All of it is for people and for cleaning up. Nothing that must hold depends on it, a lost control plane only makes it
stale, and nothing of it happens on the way of a read: who maps a file the kernel knows, without anybody's bookkeeping.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quorin.backend import ControlPlane

_START_TIME = 19
"""Place of a process's start time among the words of ``/proc/<pid>/stat`` that follow its name."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process by host, number and start time (in clock ticks since boot), since numbers are used again."""

    host: str
    pid: int
    start: int

    @classmethod
    def this(cls) -> Process:
        """The calling process."""
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()) or 0)

    @classmethod
    def parse(cls, name: str) -> Process:
        """The process that :meth:`__str__` named."""
        host, pid, start = name.rsplit(":", 2)
        return cls(host, int(pid), int(start))

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.start}"

    @property
    def is_dead(self) -> bool:
        """Whether it was on this host and is no more; of other hosts' processes nothing is known."""
        return self.host == socket.gethostname() and _start_of(self.pid) != self.start


@dataclass(frozen=True, slots=True)
class Report:
    """What a process said of itself: its role, when (ns since the epoch), and its schemas' segments and positions."""

    process: Process
    role: str
    heartbeat_ns: int
    schemas: dict[str, dict[str, Any]]

    @property
    def age_seconds(self) -> float:
        """How long ago that was."""
        return (time.time_ns() - self.heartbeat_ns) / 1e9


def announce(control: ControlPlane, role: str, schemas: Mapping[str, Mapping[str, Any]]) -> None:
    """Say in the control plane that this process lives and what it is doing. One write."""
    report = {"role": role, "heartbeat_ns": time.time_ns(), "schemas": schemas}
    control.announce(str(Process.this()), json.dumps(report))


def withdraw(control: ControlPlane) -> None:
    """Take this process out of the control plane."""
    control.withdraw(str(Process.this()))


def reports(control: ControlPlane) -> list[Report]:
    """What processes said of themselves, newest first; the dead of this host are taken out on the way."""
    found = []
    for name, text in control.processes().items():
        process = Process.parse(name)
        if process.is_dead:
            control.withdraw(name)
            continue
        said = json.loads(text)
        found.append(Report(process, said["role"], said["heartbeat_ns"], said["schemas"]))
    return sorted(found, key=lambda report: -report.heartbeat_ns)


def holders(path: str | os.PathLike[str]) -> list[Process]:
    """The processes of this machine that have a segment's file mapped, as far as this user may look."""
    name, host, found = os.fspath(path), socket.gethostname(), []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped = name in maps.read_text()
        except OSError:  # It ended meanwhile, or is another user's.
            continue
        start = _start_of(int(maps.parent.name)) if mapped else None
        if start is not None:
            found.append(Process(host, int(maps.parent.name), start))
    return found


def _start_of(pid: int) -> int | None:
    """When a process was started; None if there is none, or only a zombie."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else int(words[_START_TIME])
