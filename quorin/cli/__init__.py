"""The command ``quorin``. One module per command or group.

Exit codes: 0 done, 1 refused or failed (with the reason on stderr), 2 wrong usage, 3 rows do not pass their checks, 130
interrupted.
"""

from __future__ import annotations

import io
import os
import re
import sys
from copy import copy
from typing import Annotated, Any, TextIO, cast

import typer
from rich.console import Console

from quorin import __version__
from quorin.cli import (
    bench,
    changes,
    check,
    compact,
    consumer,
    deadletter,
    delete,
    discard,
    doctor,
    export,
    generations,
    get,
    hydrate,
    inspect,
    log,
    metrics,
    nodes,
    prewarm,
    put,
    ready,
    repartition,
    replace,
    restore,
    scan,
    schema,
    serve,
    served,
    skew,
    snapshot,
    top,
    upgrade,
    watchdog,
)
from quorin.cli.help import add_command
from quorin.cli.options import escaped
from quorin.errors import CheckFailedError, QuorinError

_ClickError: type[Any] = typer.BadParameter.__mro__[2]
"""``click.ClickException``: of the package click, or of the copy that newer releases of Typer bring."""

_INVALID = re.compile(r"Invalid value(?: for '?([\w-]+)'?(?: / '-\w')?(?: \(env var: '\w+'\))?)?: (.*)")

app = typer.Typer(
    name="quorin",
    help="Machine-learning features served from shared memory.",
    epilog="Start with `quorin doctor`, then `quorin consumer --connection redis://localhost:6379` (or a directory "
    "instead of the URL). `export QUORIN_CONNECTION=…` saves repeating it. Exit codes: 0 done, 1 refused, failed or "
    "not found, 2 wrong usage, 3 rows do not pass their checks, 130 ended by Ctrl-C. `quorin --install-completion` "
    "installs shell completion.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _command in (
    consumer.consumer,
    upgrade.upgrade,
    replace.replace,
    replace.rollback,
    repartition.repartition,
    watchdog.watchdog,
    inspect.inspect,
    schema.schema,
    get.get,
    scan.scan,
    changes.changes,
    put.put,
    delete.delete,
    export.export,
    skew.skew,
    check.check,
    doctor.doctor,
    nodes.nodes,
    ready.ready,
    serve.serve,
    prewarm.prewarm,
    bench.bench,
    metrics.metrics,
    hydrate.hydrate,
    snapshot.snapshot,
    restore.restore,
    discard.discard,
    generations.generations,
    compact.compact,
    top.top,
):
    add_command(app, _command)
app.add_typer(deadletter.app)
app.add_typer(log.app)
app.add_typer(served.app)


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
        code = program_for(sys.argv[1:2])(standalone_mode=False)  # an int if the command raised typer.Exit
    except SystemExit as end:
        code = end.code
    except _ClickError as error:
        code = _report_wrong_usage(error)
    except typer.Abort:
        _print_error("aborted; nothing was changed")
        code = 1
    except QuorinError as error:
        text = error.strerror if isinstance(error, OSError) and isinstance(error.strerror, str) else error
        _print_error("\n".join([str(text), *getattr(error, "__notes__", [])]))
        code = 3 if isinstance(error, CheckFailedError) or isinstance(error.__cause__, CheckFailedError) else 1
    except OSError as error:
        if error.filename is not None:
            _print_error(f"{os.fsdecode(error.filename)}: {error.strerror}")
            code = 1
        elif _has_failed(sys.stdout, probe=b"\n"):
            code = _report_failed_output()
        else:
            raise
    if _has_failed(sys.stdout):
        code = _report_failed_output()
    _has_failed(sys.stderr)
    sys.exit(code)


def program_for(first: list[str]) -> typer.Typer:
    """The program with the command that the first word names, or with all: Typer prepares each that is registered, and
    for all of them that takes longer than most commands run.
    """
    commands = [known for known in app.registered_commands if [getattr(known.callback, "__name__", None)] == first]
    groups = [known for known in app.registered_groups if [getattr(known.typer_instance, "info", known).name] == first]
    if not commands and not groups:
        return app
    program = copy(app)
    program.registered_commands, program.registered_groups = commands, groups
    return program


def _report_wrong_usage(error: Any) -> int:
    """Print what is wrong with the words of a command, and where its help is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    context = getattr(error, "ctx", None)
    hint = "" if context is None else f"\ntry `{context.command_path} --help`"
    _print_error(_problem(" ".join(error.format_message().split())) + hint)
    return int(error.exit_code)


def _problem(message: str) -> str:
    """What is wrong, after the option that it is about unless the text names it."""
    found = _INVALID.match(message)
    if found is None:
        return message
    about, problem = found.groups()
    return problem if about is None or about in problem else f"{about}: {problem}"


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
