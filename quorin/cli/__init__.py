"""The command ``quorin``: what runs beside the processes that serve features. One module a command or group.

Exit codes: 0 done, 1 refused or failed (the reason is on stderr), 2 wrong usage.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from quorin.cli import consumer, deadletter
from quorin.cli.options import escaped
from quorin.errors import QuorinError

app = typer.Typer(
    name="quorin",
    help="Machine-learning features served from shared memory.",
    epilog="Start with `quorin consumer --connection redis://localhost:6379`, or a directory instead of the URL.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(consumer.consumer)
app.add_typer(deadletter.app)


def main() -> None:
    """Run the command; what Quorin refuses is one line on stderr and exit code 1."""
    try:
        app()
    except QuorinError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escaped(str(error))}", soft_wrap=True)
        sys.exit(1)
