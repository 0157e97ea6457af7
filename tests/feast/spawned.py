"""Processes of their own that have Feast, as quickly as that goes: its import takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tests.support.forking import Forked, context, preload

preload(__name__)

QUICK_IMPORT = {"PYTHONOPTIMIZE": "1"}
"""For the environment of a process that imports Feast itself. Most of that import is typeguard's preparing of checks,
which optimized Python leaves out; it leaves out asserts too, so this is for processes that have none.
`tests/docs/test_readme.py` runs Feast's commands without it.
"""


def spawned(target: Callable[..., None], *arguments: Any) -> Any:
    """A started process that calls ``target``, forked from one that has imported Feast and opened nothing."""
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def start_feast(
    words: list[str],
    environment: dict[str, str],
    *,
    directory: Path,
    out: IO[Any] | None = None,
    err: IO[Any] | None = None,
) -> Forked:
    """Start the ``feast`` command in such a process, where Quorin's name is registered as its hook does it."""
    return Forked(run_feast, ["feast", *words], environment, directory=directory, out=out, err=err)


def run_feast() -> None:
    """What the command ``feast`` does."""
    from feast.cli.cli import cli

    cli()
