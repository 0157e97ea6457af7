"""The benchmark of the engine runs, and puts its tables where the document has a place for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from benchmarks import report

ROOT = Path(__file__).parents[2]


QUICK = ("reads", "beside_a_writer", "memory")


@pytest.mark.parametrize("parts", [QUICK, pytest.param(("growth",), marks=pytest.mark.torture)])
def test_parts_measure_and_report(tmp_path: Path, parts: tuple[str, ...]) -> None:
    document = tmp_path / "performance.md"
    document.write_text("before\n\n<!-- engine -->\nold\n<!-- /engine -->\n\nafter\n")
    command = [sys.executable, "-m", "benchmarks.engine", "--processes", "1", "--rounds", "1", "--entities", "2000"]
    command += ["--most-entities", "1000", "--json", str(tmp_path / "figures.json"), "--docs", str(document)]
    command += [argument for part in parts for argument in ("--only", part)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["cores"] > 0
    assert all(row.get("p50", row.get("bytes_an_entity")) > 0 for part in parts for row in figures[part].values())
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert ("| 4 fields, one id: LMDB get |" in text) == ("reads" in parts)


def test_a_document_without_a_place_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("nothing here")
    with pytest.raises(ValueError, match="<!-- engine -->"):
        report.put(document, "engine", "a machine", [Table(title="t")])
    assert document.read_text() == "nothing here"
