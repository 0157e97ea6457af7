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

    from quorin.engine.backend import ControlPlane

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
        """Whether it was on this host and is no more; of other hosts' processes nothing is known.

        One that is frozen is not dead, nor is one whose parent has not taken note of its end: it may have threads yet.
        """
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


def announced(control: ControlPlane) -> dict[str, bool]:
    """The processes that are announced, each with whether it is dead."""
    return {name: Process.parse(name).is_dead for name in control.processes()}


def mapped_inodes(directory: str | os.PathLike[str]) -> set[tuple[int, int]]:
    """Device and inode of every file of a directory that a process of this machine has mapped, as far as this user may
    look. A file counts whatever its name is now.
    """
    prefix, found = f" {os.fspath(directory)}/", set()
    for process in Path("/proc").glob("[0-9]*"):
        for line in _maps(process).splitlines():
            if prefix in line:
                _, _, _, device, inode, _ = line.split(maxsplit=5)
                major, _, minor = device.partition(":")
                found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return found


def _maps(process: Path) -> str:
    """A process's mappings; those of a thread that is left when its first one has ended."""
    for path in (process / "maps", *(process.glob("task/*/maps") if _is_zombie(process) else ())):
        try:
            text: str = path.read_text()
            if text:
                return text
        except OSError:  # It ended meanwhile, or is another user's.
            continue
    return ""


def _is_zombie(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


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
    """When a process was started; None if there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(words[_START_TIME])
