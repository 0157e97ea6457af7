"""The help of a command, from its docstring."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import typer

_AS_WRITTEN = "\b\n"
"""What click finds before lines that it must not join."""


def add_command(app: typer.Typer, function: Callable[..., Any], name: str | None = None) -> None:
    """Add a command to a program or group. The lines under ``Examples:`` are shown as they are written."""
    text = inspect.getdoc(function) or ""
    app.command(name, help=text.replace("Examples:\n", f"{_AS_WRITTEN}Examples:\n"))(function)
