"""What people are told of kernels: that they are being compiled, and that they were compiled or loaded."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from quorin.engine.kernels import Loading, described

SLOW = "from quorin.engine import kernels; kernels.load(('apply_rows', 'assemble_one'))"


def test_a_terminal_is_told_once_that_kernels_compile(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    assert seen_in_terminal(environment).count("quorin: compiling kernels") == 1
    assert seen_in_terminal(environment) == ""  # They are loaded.


def test_kernels_that_compile_shortly_are_told_of_together() -> None:
    """Each block compiles for less than the patience of a second, and together they take three times as long."""
    short = "import time; from quorin.engine.kernels import announcing\n"
    short += "for _ in range(6):\n with announcing.announced() as compiling: compiling(); time.sleep(0.5)\n"
    assert seen_in_terminal(dict(os.environ), short).count("quorin: compiling kernels") == 1
    assert seen_in_terminal(dict(os.environ), short.replace("compiling();", "")) == ""


def test_a_notebook_is_told_that_kernels_compile(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SLOW)])
    NotebookClient(notebook, timeout=180).execute(env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)})
    told = "".join(output.text for output in notebook.cells[0].outputs if output.get("name") == "stderr")
    assert told.count("quorin: compiling kernels") == 1


def seen_in_terminal(environment: dict[str, str], program: str = SLOW) -> str:
    """What a process, by default one that uses two kernels, writes to standard error, a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        done = subprocess.run([sys.executable, "-c", program], env=environment, stderr=theirs, timeout=180)
        os.write(theirs, b".")  # So that there is something to read.
        os.close(theirs)
        assert done.returncode == 0
        return screen.read(65536).decode().removesuffix(".")


def test_compiled_kernels_are_told_from_loaded_ones() -> None:
    assert (
        described([Loading(True, 20.0), Loading(True, 7.0), Loading(False, 0.5)])
        == "2 compiled in 27 s, 1 loaded in 500 ms"
    )
    assert described([Loading(False, 0.5)]) == "1 loaded in 500 ms"
