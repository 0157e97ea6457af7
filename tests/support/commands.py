"""The command ``quorin`` in a forked process."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path

from quorin.cli import main
from tests.support import consumers
from tests.support.forking import Forked, preload, run

preload(consumers.__name__, __name__)
for name in (
    "feast_quorin.repository",
    "pandas",
    "prometheus_client",
    "pydantic.fields",  # of Typer, for the arguments of a command
    "pydantic.type_adapter",
    "quorin.assembly",
    "quorin.engine.backend.sqlite",
    "quorin.evolution",
    "quorin.hydration",
    "quorin.offline",
    "quorin.wal",
    "quorin.wal_consumer",
    "rich.progress",
):
    importlib.import_module(name)  # what commands import when they need it


def run_quorin(
    words: list[str], environment: dict[str, str], *, directory: Path | None = None, timeout: float = 180
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end: its output and exit code, which is the signal's negative number if one ended it."""
    return run(main, ["quorin", *words], environment, directory=directory, timeout=timeout)


def start_quorin(words: list[str], environment: dict[str, str], *, directory: Path | None = None) -> Forked:
    """Start a command; what it says on standard error is in ``stderr``."""
    return Forked(main, ["quorin", *words], environment, directory=directory)
