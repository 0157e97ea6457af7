"""A machine whose server sends its rows to new nodes, and processes that it starts for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.http import Running, serving
from tests.support.machines import Machine


@contextmanager
def serve(machine: Machine, log: Path, *options: str, **more: Any) -> Iterator[Running]:
    where = ["--connection", str(machine.shm.parent / "store"), "--shm-dir", str(machine.shm)]
    with serving(["quorin", "serve", "-p", "{port}", *where, *options], log, **more) as running:
        yield running


def senders(server: Running) -> list[int]:
    """The processes that copy and send for a server."""
    return [pid for pid in children(server) if b"quorin.engine.bootstrap.sender" in _command(pid)]


def children(server: Running) -> list[int]:
    """The processes that a server has started, ended ones that it has not waited for included."""
    found = []
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        try:
            found += [int(word) for word in (task / "children").read_text().split()]
        except OSError:  # The thread has ended.
            continue
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
