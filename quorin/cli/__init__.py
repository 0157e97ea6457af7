"""The command ``quorin``: what runs beside the processes that serve features. One module a command or group.

Exit codes: 0 done, 1 refused or failed (the reason is on stderr), 2 wrong usage.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from quorin import __version__
from quorin.cli import (
    bench,
    compact,
    consumer,
    deadletter,
    doctor,
    get,
    hydrate,
    inspect,
    metrics,
    put,
    restore,
    snapshot,
    top,
    upgrade,
    watchdog,
)
from quorin.cli.options import escaped
from quorin.errors import QuorinError

app = typer.Typer(
    name="quorin",
    help="Machine-learning features served from shared memory.",
    epilog="Start with `quorin doctor`, then `quorin consumer --connection redis://localhost:6379`, or a directory "
    "instead of the URL; `export QUORIN_CONNECTION=…` saves repeating it. Exit codes: 0 done, 1 refused, failed or not "
    "found, 2 wrong usage. `quorin --install-completion` teaches your shell the commands.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(consumer.consumer)
app.command()(upgrade.upgrade)
app.command()(watchdog.watchdog)
app.command()(inspect.inspect)
app.command()(get.get)
app.command()(put.put)
app.command()(doctor.doctor)
app.command()(bench.bench)
app.command()(metrics.metrics)
app.command()(hydrate.hydrate)
app.command()(snapshot.snapshot)
app.command()(restore.restore)
app.command()(compact.compact)
app.command()(top.top)
app.add_typer(deadletter.app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"quorin {__version__}")
        raise typer.Exit


@app.callback()
def quorin(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Machine-learning features served from shared memory."""


def main() -> None:
    """Run the command; what Quorin refuses is on stderr, with its notes, and exit code 1."""
    try:
        app()
    except QuorinError as error:
        text = "\n".join([str(error), *getattr(error, "__notes__", [])])
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escaped(text)}", soft_wrap=True)
        sys.exit(1)
