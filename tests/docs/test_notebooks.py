"""The notebooks run from their first cell to their last, in an empty directory, and show what they promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from quorin.engine.memory.file import SHM_DIR_VARIABLE

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
SHOWN = {
    "engine": [
        "<caption>User version 1</caption>",
        "<caption>User version 1: 3 entities, ",
        "array([31.,  5.], dtype=float32)",
        "array([ True, False])",
        "per loop",
    ],
    "feast": ["<table", "'conv_rate': [0.875]", "per loop"],
    "history": ["240", "[12, None, 23]", "hydrating: 100%", "restoring: 100%", "replacing: 1.00it", "(10, 10, 1)"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_and_leaves_no_segment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "segments").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv(SHM_DIR_VARIABLE, str(tmp_path / "segments"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "a notebook is kept without its outputs"
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    shown = "\n".join(text for cell in notebook.cells for output in cell.get("outputs", []) for text in texts(output))
    assert [text for text in SHOWN[name] if text not in shown] == [], shown
    assert "Warning" not in shown
    assert list((tmp_path / "segments").glob("quorin_*")) == []


def texts(output: Any) -> list[str]:
    data = output.get("data", {})
    return [output.get("text", ""), data.get("text/html", ""), data.get("text/plain", "")]
