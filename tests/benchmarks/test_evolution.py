"""The benchmarks of upgrades, replacements, checks and the collector run, and find what must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, name: str, mark: str, *sizes: str) -> dict[str, dict[str, float]]:
    (tmp_path / "page.md").write_text(f"before\n<!-- {mark} -->\n<!-- /{mark} -->\nafter\n")
    files = ["--json", str(tmp_path / "figures.json"), "--docs", str(tmp_path / "page.md")]
    command = [sys.executable, "-m", f"benchmarks.{name}", *sizes, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, dict[str, float]] = json.loads((tmp_path / "figures.json").read_text())
    assert "| ---: |" in (tmp_path / "page.md").read_text()
    return figures


def test_a_short_upgrade_loses_nothing(tmp_path: Path) -> None:
    sizes = ["--entities", "20000", "--quiet-seconds", "0.5", "--holders", "2"]
    figures = run(tmp_path, "evolution", "evolution", *sizes)["evolution"]
    assert figures["failed_reads"] == figures["lost_writes"] == 0
    # A copy of so few may end before a reader of a busy machine has its next turn.
    assert figures["reads"] > figures["reads_during_copy"] >= 0
    assert figures["ticks_most"] == 2
    assert figures["copy_4_per_s"] > 0


def test_a_short_look_at_checks_and_pins(tmp_path: Path) -> None:
    sizes = ["--entities", "5000", "--fields", "2", "--repeats", "1"]
    figures = run(tmp_path, "checks", "checks", *sizes)["checks"]
    assert all(value > 0 for value in figures.values())


def test_a_short_replacement_loses_nothing(tmp_path: Path) -> None:
    sizes = ["--entities", "5000", "--nodes", "2", "--quiet-seconds", "0.5", "--rate", "2000"]
    figures = run(tmp_path, "replace", "replace", *sizes)["replace"]
    assert figures["failed_reads"] == figures["mixed_rows"] == figures["lost_pushes"] == figures["rollback_wrong"] == 0
    assert figures["reads"] > figures["reads_during"] >= 0
    assert figures["rows_pushed"] > 0


@pytest.mark.torture
def test_a_short_look_at_the_collector(tmp_path: Path) -> None:
    sizes = ["--objects", "2000", "--requests", "500", "--processes", "1"]
    figures = run(tmp_path, "gc_pauses", "gc", *sizes)["gc"]
    assert set(figures) == {"default", "freeze", "rare", "off"}  # type: ignore[comparison-overlap]
    assert all(mode["p50"] <= mode["longest"] for mode in figures.values())  # type: ignore[index]
