"""The benchmark of scans, changes and last values runs, and all stores return the same rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_every_store(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.rows", "--processes", "1", "--rounds", "1", "--entities", "1000"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "figures.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {name.partition(":")[0] for name in figures} >= {"all rows", "of a prefix", "last 50 values"}
    assert all(row["p50"] > 0 for row in figures.values())
