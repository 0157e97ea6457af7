"""The command ``quorin``. One module per command or group.

Exit codes: 0 done, 1 refused or failed (with the reason on stderr), 2 wrong usage.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, TextIO, cast

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
    nodes,
    prewarm,
    put,
    ready,
    restore,
    serve,
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
    epilog="Start with `quorin doctor`, then `quorin consumer --connection redis://localhost:6379` (or a directory "
    "instead of the URL). `export QUORIN_CONNECTION=…` saves repeating it. Exit codes: 0 done, 1 refused, failed or "
    "not found, 2 wrong usage. `quorin --install-completion` installs shell completion.",
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
app.command()(nodes.nodes)
app.command()(ready.ready)
app.command()(serve.serve)
app.command()(prewarm.prewarm)
app.command()(bench.bench)
app.command()(metrics.metrics)
app.command()(hydrate.hydrate)
app.command()(snapshot.snapshot)
app.command()(restore.restore)
app.command()(compact.compact)
app.command()(top.top)
app.add_typer(deadletter.app)


def _print_version(requested: bool) -> None:
    if requested:
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
    """Run the command. An error of Quorin's is printed on stderr with its notes; the exit code is then 1."""
    _escape_unencodable_text()
    code: int | str | None = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except QuorinError as error:
        _print_error("\n".join([str(error), *getattr(error, "__notes__", [])]))
        code = 1
    except OSError:
        if not _has_failed(sys.stdout, probe=b"\n"):
            raise
        code = _report_failed_output()
    if _has_failed(sys.stdout):
        code = _report_failed_output()
    _has_failed(sys.stderr)
    sys.exit(code)


def _escape_unencodable_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _has_failed(stream: TextIO | None, *, probe: bytes = b"") -> bool:
    """Flush a standard stream; return whether it fails.

    A failed stream is redirected to the null device: otherwise Python would flush it again at exit and change the exit
    code. A stream drops what it could not write, so after an error only writing a ``probe`` shows whether it failed.
    """
    try:
        if stream is not None:
            stream.flush()
            if probe:
                os.write(stream.fileno(), probe)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, cast("TextIO", stream).fileno())
        os.close(nowhere)
        return True
    return False


def _report_failed_output() -> int:
    _print_error("cannot write to standard output: it is full, or its disk fails")
    return 1


def _print_error(text: str) -> None:
    try:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escaped(text)}", soft_wrap=True)
    except OSError:
        _has_failed(sys.stderr)  # Only the exit code is left to report it.
