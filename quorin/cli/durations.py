"""Durations on the command line: a number and a unit, such as ``500ms``, ``1s``, ``10m``, ``1h30m``."""

from __future__ import annotations

import typer

from quorin.engine.words import seconds_of


def seconds(text: str) -> float:
    """The seconds of a duration. :raises typer.BadParameter: for anything else."""
    found = seconds_of(text)
    if found is None:
        raise typer.BadParameter(f"expected a duration such as 500ms, 1s, 10m or 1h30m, got {text!r}")
    return found
