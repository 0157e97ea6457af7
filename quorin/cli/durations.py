"""Durations on the command line: a number and a unit, such as ``500ms``, ``1s``, ``10m``, ``1h30m``."""

from __future__ import annotations

import re

import typer

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds(text: str) -> float:
    """The seconds of a duration. :raises typer.BadParameter: for anything else."""
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise typer.BadParameter(f"expected a duration such as 500ms, 1s, 10m or 1h30m, got {text!r}")
    return sum(float(part[1]) * _UNITS[part[2]] for part in _PART.finditer(text))
