"""The benchmark of the log runs, on each log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_run_prints_a_table_and_writes_figures(tmp_path):
    sizes = ["--rows", "20000", "--entities", "5000", "--writes", "100", "--syncs", "50"]
    (tmp_path / "page.md").write_text("before\n<!-- log -->\n<!-- /log -->\nafter\n")
    files = ["--json", str(tmp_path / "log.json"), "--docs", str(tmp_path / "page.md")]
    command = [sys.executable, "-m", "benchmarks.log", *sizes, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "log.json").read_text())["log"]
    for kind in ("redis", "unix", "embedded"):
        assert all(value > 0 for value in figures[kind].values())
        assert figures[kind]["bulk_visible_per_s"] <= figures[kind]["bulk_appended_per_s"]
    assert "| write_many, visible |" in (tmp_path / "page.md").read_text()
