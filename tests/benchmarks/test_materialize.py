"""The benchmarks of writes and of vector search run, on all stores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, name: str, *sizes: str) -> tuple[dict, str]:
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- {name} -->\n<!-- /{name} -->\nafter\n")
    files = ["--json", str(tmp_path / "figures.json"), "--docs", str(page)]
    command = [sys.executable, "-m", f"benchmarks.{name}", *sizes, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "figures.json").read_text()), page.read_text()


@pytest.mark.torture
def test_a_short_run_of_materializations(tmp_path):
    sizes = [
        "--rows",
        "2000",
        "--wide-rows",
        "300",
        "--slice",
        "200",
        "--repeats",
        "1",
        "--pushes",
        "10",
        "--reads",
        "20",
    ]
    figures, page = run(tmp_path, "materialize", *sizes)
    assert set(figures["materialize"]) == {"2,000 × 4", "300 × 50"}
    for row in figures["materialize"].values():
        assert all(way["rows_per_s"] > 0 for way in row.values())
    assert "| Quorin, engine | 2,000 |" in page


@pytest.mark.torture
def test_a_short_run_of_vector_searches(tmp_path):
    figures, page = run(tmp_path, "vectors", "--rows", "500", "--size", "20", "--searches", "10")
    assert figures["vectors"]["Feast on Quorin"]["p50"] > 0
    assert "| quorin.vector.search |" in page
