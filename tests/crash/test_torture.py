"""A writer at full speed, readers that check every row, and a writer that is killed and stopped at random."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quorin import layout
from quorin.shm import SegmentRegistry
from tests.support.torture import Mixed, Wide, mixed_table, wide_table

ROOT = Path(__file__).parents[2]


def run_torture(tmp_path: Path, seconds: float, *, kill: bool) -> tuple[int, int]:
    """Rows checked, and how often the writer was killed."""
    (tmp_path / "shm").mkdir()
    registry = SegmentRegistry(tmp_path / "control", shm_dir=tmp_path / "shm")
    for schema, table in ((Wide, wide_table(1)), (Mixed, mixed_table(1))):
        with registry.create(schema, capacity=8) as segment:
            layout.insert_many(segment, table)
    readers = [start("read", str(tmp_path), str(seconds)) for _ in range(2)]
    writer = start("write", str(tmp_path))
    rng = random.Random(7)
    kills = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(0.02, 0.3))
        writer.send_signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0, 0.05))
        if kill:
            writer.kill()
            writer.communicate()
            kills += 1
            writer = start("write", str(tmp_path))
        else:
            writer.send_signal(signal.SIGCONT)
    reads = 0
    for reader in readers:
        output, _ = reader.communicate(timeout=60)
        assert reader.returncode == 0, output
        reads += int(output)
    assert writer.poll() is None, "the writer ended by itself"
    writer.kill()
    writer.communicate()
    registry.backend.close()
    return reads, kills


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.torture", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_no_row_is_torn_beside_a_writer_that_is_stopped_at_random(tmp_path: Path) -> None:
    reads, _ = run_torture(tmp_path, 4.0, kill=False)
    assert reads > 100_000


def test_no_row_is_torn_beside_writers_that_are_killed_at_random(tmp_path: Path) -> None:
    reads, kills = run_torture(tmp_path, 6.0, kill=True)
    assert reads > 100_000
    assert kills >= 2


@pytest.mark.torture
def test_no_row_is_torn_in_a_hundred_million_reads(tmp_path: Path) -> None:
    reads = 0
    for round_number in range(100):
        directory = tmp_path / str(round_number)
        directory.mkdir()
        reads += run_torture(directory, 30.0, kill=round_number % 2 == 1)[0]
        if reads >= 10**8:
            return
    pytest.fail(f"only {reads:,} reads")
