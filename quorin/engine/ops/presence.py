"""Running processes: their entries in the control plane, and the segments that they have mapped.

This is for operators and for the watchdog. Correctness never depends on it, and reads do not touch it: the kernel knows
which processes map a file, without bookkeeping. A lost control plane only makes entries stale.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorin.engine.format.partition import Partitioning
from quorin.engine.memory.file import parse_pending

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from quorin.engine.backend import ControlPlane

FORGET_SECONDS = 7 * 86400.0
WHOLE = Partitioning()
"""What a node of a deployment with one partition holds."""
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""The number that Linux gives the process-id namespace of the machine itself (``PROC_PID_INIT_INO``)."""
_START_TIME = 19
"""Index of a process's start time among the words of ``/proc/<pid>/stat`` that follow its name."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process by host, id and start time (in clock ticks since boot), since ids are reused.

    In a container the host has the number of its process-id namespace added, as two of them may share a host's name.
    """

    host: str
    pid: int
    start: int

    @classmethod
    def this(cls) -> Process:
        """The calling process."""
        return cls(_this_host(), os.getpid(), _start_of(os.getpid()) or 0)

    @classmethod
    def parse(cls, name: str) -> Process:
        """The process that :meth:`__str__` named."""
        host, pid, start = name.rsplit(":", 2)
        return cls(host, int(pid), int(start))

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.start}"

    @property
    def is_dead(self) -> bool:
        """Whether the process ran on this host and has ended; False for processes of other hosts.

        A stopped process is not dead, nor is a zombie: it may still have threads.
        """
        return self.host == _this_host() and _start_of(self.pid) != self.start


@dataclass(frozen=True, slots=True)
class Report:
    """A process's entry: its role, its node, which partitions that holds, and its schemas' segments, versions,
    positions and lags.

    ``age_seconds`` is the time since it was written, by the control plane's clock.
    """

    process: Process
    role: str
    node: str
    age_seconds: float
    schemas: dict[str, dict[str, Any]]
    partitions: Partitioning = WHOLE


def announce(
    control: ControlPlane,
    role: str,
    node: str,
    schemas: Mapping[str, Mapping[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write this process's entry, with the current time as its heartbeat, and ``more`` to tell. One write."""
    report = {"role": role, "node": node, "heartbeat_ns": time.time_ns(), "schemas": schemas, **(more or {})}
    positions = {
        replica_name(name, partition): position
        for name, schema in schemas.items()
        for partition, position in reported_positions(schema)
    }
    control.announce(str(Process.this()), json.dumps(report), node=node, positions=positions)


def reported_positions(schema: Mapping[str, Any]) -> Iterator[tuple[int | None, int]]:
    """The positions of one schema's entry in a report, each with its partition; None is the only log there is."""
    if "partitions" not in schema:
        yield None, int(schema["position"])
        return
    for partition, part in schema["partitions"].items():
        yield int(partition), int(part["position"])


def replica_name(schema_name: str, partition: int | None) -> str:
    """What the control plane calls a node's replica of a schema, or of one partition of it."""
    return schema_name if partition is None else f"{schema_name}/{partition}"


def withdraw(control: ControlPlane) -> None:
    """Remove this process's entry."""
    control.withdraw(str(Process.this()))


def reports(control: ControlPlane) -> list[Report]:
    """The processes' entries, newest first. Removes entries of dead processes of this host, and those of processes of
    any host that have been silent for a week.
    """
    living = []
    silences = control.silences()
    for name, text in control.processes().items():
        process, entry = Process.parse(name), json.loads(text)
        # A process of an earlier release has no time of the control plane's.
        age = silences.get(name, (time.time_ns() - entry["heartbeat_ns"]) / 1e9)
        if process.is_dead or age > FORGET_SECONDS:
            control.withdraw(name)
            continue
        told = entry.get("partitions")
        held = WHOLE if told is None else Partitioning(told["count"], frozenset(told["held"]))
        living.append(Report(process, entry["role"], entry.get("node", ""), age, entry["schemas"], held))
    return sorted(living, key=lambda report: report.age_seconds)


def announced(control: ControlPlane) -> dict[str, bool]:
    """The processes with an entry, each with whether it is dead."""
    return {name: Process.parse(name).is_dead for name in control.processes()}


def mapped_inodes(directory: str | os.PathLike[str]) -> set[tuple[int, int]]:
    """Device and inode of every file of a directory that a process of this machine has mapped, as far as this user can
    see. Renamed and removed files count too.
    """
    prefix, inodes = f" {os.fspath(directory)}/", set()
    for process in Path("/proc").glob("[0-9]*"):
        for line in _maps(process).splitlines():
            if prefix in line:
                _, _, _, device, inode, _ = line.split(maxsplit=5)
                major, _, minor = device.partition(":")
                inodes.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return inodes


def _maps(process: Path) -> str:
    """A process's mappings; for a zombie, those of a remaining thread."""
    for path in (process / "maps", *(process.glob("task/*/maps") if _is_zombie(process) else ())):
        try:
            text: str = path.read_text()
            if text:
                return text
        except OSError:  # The process ended meanwhile, or belongs to another user.
            continue
    return ""


def _is_zombie(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def mapping_processes(directory: str | os.PathLike[str]) -> dict[str, list[Process]]:
    """The processes of this machine that have files of a directory mapped, as far as this user can see, by the name of
    the file, which may have been removed since. Reads the mappings of every process once.
    """
    prefix, host = f" {os.fspath(directory)}/", _this_host()
    found: dict[str, list[Process]] = {}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text()
        except OSError:  # The process ended meanwhile, or belongs to another user.
            continue
        mapped = [line.partition(prefix)[2] for line in text.splitlines() if prefix in line]
        # The kernel shows the name that a file had when it was mapped.
        names = {parse_pending(name.removesuffix(" (deleted)"))[0] for name in mapped}
        start = _start_of(int(maps.parent.name)) if names else None
        if start is not None:
            for name in names:
                found.setdefault(name, []).append(Process(host, int(maps.parent.name), start))
    return found


def pinning_processes(paths: Iterable[Path]) -> dict[Path, list[Process]]:
    """The processes of this machine that pin each of some files, as far as this user can see."""
    found: dict[Path, list[Process]] = {}
    inodes = {}
    for path in paths:
        with suppress(FileNotFoundError):
            inodes[path.stat().st_ino] = path
    for folder in Path("/proc").glob("[0-9]*/fdinfo") if inodes else ():
        with suppress(OSError):  # The process ended meanwhile, or belongs to another user.
            locked = {inode for entry in folder.iterdir() for inode in _pinned_inodes(entry)}
            start = _start_of(int(folder.parent.name)) if locked & inodes.keys() else None
            if start is not None:
                for inode in locked & inodes.keys():
                    found.setdefault(inodes[inode], []).append(Process(_this_host(), int(folder.parent.name), start))
    return found


def _pinned_inodes(entry: Path) -> list[int]:
    """The inode of the file that a descriptor of a process pins (:mod:`quorin.engine.memory.pins`)."""
    try:
        lines = entry.read_text().splitlines()
    except OSError:  # It was closed meanwhile.
        return []
    words = [line.split() for line in lines if line.startswith("lock:") and "OFDLCK" in line]
    # The words end in the inode, and the range that is locked: a pin reaches to the end of the file.
    return [int(parts[-3].rpartition(":")[2]) for parts in words if parts[-1] == "EOF"]


@cache
def _this_host() -> str:
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return socket.gethostname() + ("" if namespace == _FIRST_PID_NAMESPACE else f"#{namespace}")


def _start_of(pid: int) -> int | None:
    """A process's start time in clock ticks since boot; None if it does not exist."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(words[_START_TIME])
