"""A process that ends without closing its segment leaves nothing to repair; one that is killed does."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quorin.layout import insert, pack_row
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry

USERS = make_schema("Users", [FeatureField("score", dtype.float64)])
ENDS = {
    "the program's end": "",
    "an exit code": "sys.exit(3)",
    "an exception": "raise RuntimeError('of the application')",
    "a child of it that ends first": "pid = os.fork()\nif not pid: sys.exit()\nos.waitpid(pid, 0)",
}


@pytest.fixture
def registry(tmp_path: Path) -> SegmentRegistry:
    made = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path)
    made.create(USERS, capacity=10).close()
    return made


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_process_that_ends_leaves_nothing_to_repair(registry, end):
    write_in_another_process(registry, end)
    assert not is_repaired(registry)


def test_a_process_that_is_killed_is_repaired_after(registry):
    assert write_in_another_process(registry, "os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    assert is_repaired(registry)
    assert not is_repaired(registry)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_of_multiprocessing_leaves_nothing_to_repair(registry, method):
    child = multiprocessing.get_context(method).Process(target=write, args=(registry,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert not is_repaired(registry)


def test_a_child_that_ends_takes_no_lease_from_its_parent(registry):
    segment = write(registry)
    child = multiprocessing.get_context("fork").Process(target=gc.collect)
    child.start()
    child.join(60)
    assert segment.holds_writer_lease
    assert segment.stats()["writer_pid"] == os.getpid()
    segment.close()
    assert not is_repaired(registry)


def test_a_segment_that_is_dropped_leaves_nothing_to_repair(registry):
    write(registry)
    gc.collect()
    assert not is_repaired(registry)


def write(registry: SegmentRegistry) -> Segment:
    segment = registry.open_current(USERS, read_only=False)
    insert(segment, "user_1", pack_row(USERS, score=0.5))
    return segment


def write_in_another_process(registry: SegmentRegistry, end: str) -> int:
    """Its exit code. The process keeps the segment open."""
    script = (
        "import os, signal, sys\n"
        "from quorin.layout import insert, pack_row\n"
        "from quorin.shm import SegmentRegistry\n"
        f"registry = SegmentRegistry({registry.backend.address!r}, shm_dir={str(registry.shm_dir)!r})\n"
        "segment = registry.open_stored('Users', read_only=False)\n"
        "insert(segment, 'user_1', pack_row(segment.schema, score=0.5))\n"
    )
    return subprocess.run([sys.executable, "-c", script + end], stderr=subprocess.DEVNULL).returncode


def is_repaired(registry: SegmentRegistry) -> bool:
    """Whether the next writer, in a process of its own, says that it recovered what a dead one left."""
    script = (
        "from quorin.shm import SegmentRegistry\n"
        f"registry = SegmentRegistry({registry.backend.address!r}, shm_dir={str(registry.shm_dir)!r})\n"
        "with registry.open_stored('Users', read_only=False) as segment: segment.acquire_writer_lease()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return "writer_recovered" in done.stderr
