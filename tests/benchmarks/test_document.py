"""The document's tables and pictures are those of the committed figures, and one command measures all that there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import document, pictures, summary
from benchmarks.__main__ import BENCHMARKS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / document.FIGURES).read_text())
    return found


def test_the_page_is_what_the_figures_give() -> None:
    text = (DOCS / document.PAGE).read_text()
    assert document.render(text, figures()) == text


def test_every_benchmark_has_a_place_and_what_stands_there_names_its_machine() -> None:
    page = (DOCS / document.PAGE).read_text()
    entries = figures()
    places = set(re.findall(r"<!-- (\w+) -->", page)) - {summary.MARK}
    assert places == {benchmark.mark for benchmark in BENCHMARKS.values()}
    assert {mark for mark in places if document.section(page, mark).strip()} == set(entries)
    for entry in entries.values():
        assert entry["machine"]["cores"] > 0
        assert f"Measured on {entry['machine']['cpu']}" in "\n".join(entry["tables"])


def test_the_page_of_the_plugin_has_the_same_ratios() -> None:
    medians = {case: row["p50"] for case, row in figures()["feast"]["figures"]["feast"].items()}
    page = (DOCS / "feast-plugin.md").read_text()
    rows = re.findall(r"^\| (\d.* × .*?) \| (.*?)× \| (.*?)× \|$", page, re.MULTILINE)
    assert len(rows) == 3
    for request, *shown in rows:
        cases = [f"{request}, {form}" for form in ("to_dict", "to_df")]
        ratios = [medians[f"{case}: feast-redis"] / medians[f"{case}: feast-quorin"] for case in cases]
        assert shown == [f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}" for ratio in ratios], request


def test_the_pictures_are_what_the_figures_give() -> None:
    committed = {path.name: path.read_text() for path in (DOCS / document.PICTURES).iterdir()}
    drawn = pictures.draw_all(figures())
    assert set(drawn) == set(committed)
    assert [name for name in drawn if drawn[name] != committed[name]] == []
    shown = set(re.findall(rf"\({document.PICTURES}/([\w.]+)\)", (DOCS / document.PAGE).read_text()))
    assert shown == set(drawn)


def test_every_module_that_writes_to_the_page_is_run_by_the_command() -> None:
    found = {
        path.stem: mark[1]
        for path in (ROOT / "benchmarks").glob("*.py")
        if (mark := re.search(r'report\.keep\(\s*arguments, "(\w+)"', path.read_text()))
    }
    assert found == {name: benchmark.mark for name, benchmark in BENCHMARKS.items()}, "see BENCHMARKS in __main__.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_keeps_the_run_and_writes_the_document_asked_for(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text("before\n\n<!-- gc -->\n<!-- /gc -->\n<!-- log -->\nkept\n<!-- /log -->\n")
    before = {path: path.read_bytes() for path in DOCS.rglob("*") if path.is_file()}
    done = run("--quick", "--only", "gc_pauses", "--docs", str(tmp_path), "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    [kept] = (tmp_path / "results").iterdir()
    entry = json.loads(kept.read_text())["gc"]
    assert entry["figures"]["gc"]["off"]["p50"] > 0
    assert entry["machine"]["versions"]["numpy"]
    page = (tmp_path / "performance.md").read_text()
    assert "| collector |" in page
    assert f"A short run: `{BENCHMARKS['gc_pauses'].quick}`." in page
    assert "<!-- log -->\nkept\n<!-- /log -->" in page
    assert "![" in page
    assert (tmp_path / "pictures" / "collector.svg").read_text().startswith("<?xml")
    assert json.loads((tmp_path / "figures.json").read_text())["gc"] == entry
    assert before == {path: path.read_bytes() for path in before}


def test_the_list_names_all_and_runs_none() -> None:
    done = run("--list", "--skip", "engine")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line] == [n for n in BENCHMARKS if n != "engine"]


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- gc -->"):
        document.render("nothing", {"gc": {}})
