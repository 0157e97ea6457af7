"""Writers that are killed or frozen at each named point of a write, of a flip and of a change of the log; see
:mod:`tests.support.crash_points`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("cases", ["kill 180 stop 120", "flip 42 commit 8"])
def test_readers_go_on_and_the_next_writer_continues(cases: str) -> None:
    command = [sys.executable, "-m", "tests.support.crash_points", *cases.split()]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == cases.split()
