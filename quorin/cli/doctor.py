"""``quorin doctor``: check what goes wrong in practice, and say what to do about it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from quorin.cli.options import Namespace, Opened, OptionalConnection, OptionalOffline, Raw, ShmDir, StreamKey, escaped
from quorin.cli.output import Json, console, print_json
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY

if TYPE_CHECKING:
    from quorin.engine.ops.health import Check

_MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "problem": "[bold red]problem[/]"}


def doctor(
    connection: OptionalConnection = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    offline: OptionalOffline = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Find problems of this machine, its segments and the log.

    Says what is wrong and how to fix it. Checks shared memory (space, limits, huge pages, whether logind removes it),
    compiled kernels, Feast and its hook, the clock, Redis (version, persistence, memory), each segment's checksum,
    bookkeeping and event times, lag, trimming and dead letters; with `--offline` also whether the footer of each file
    of the history is whole.

    Examples:
        quorin doctor                                # this machine, and in a Feast repository its store
        quorin doctor --offline data/history --json  # with the history, for a script

    Exit codes: 0 nothing worse than a warning, 1 a problem, 2 wrong usage.
    """
    from quorin.engine.ops.health import check_deployment, check_machine
    from quorin.engine.ops.history_checks import check_history
    from quorin.shm import default_shm_dir

    directory = shm_dir or default_shm_dir()
    checks = check_machine(directory)
    if connection is not None:
        checks += check_deployment(connection, namespace=namespace, stream_key=stream_key, shm_dir=directory)
    if offline is not None:
        checks += check_history(offline)
    if connection is not None and not raw:
        checks = _in_names(checks, connection, namespace)
    if as_json:
        print_json({"checks": [check.as_dict() for check in checks]})
    else:
        out = console()
        for check in checks:
            out.print(f"{_MARKS[check.status]} {escaped(check.name)}: {escaped(check.found)}", soft_wrap=True)
            if check.advice:
                out.print(f"         [dim]→[/] {escaped(check.advice)}", soft_wrap=True)
        if connection is None:
            out.print("\nPass --connection to check the control plane, the segments and the log as well.")
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)


def _in_names(checks: list[Check], connection: str, namespace: str) -> list[Check]:
    """Checks in the names that Feast's users know, unless the control plane cannot be reached."""
    if any(check.name == "control plane" for check in checks):
        return checks
    with Opened(connection, namespace) as backend:
        names = Names.of(backend)
    texts = ("name", "found", "advice")
    return [replace(check, **{text: names.text(getattr(check, text)) for text in texts}) for check in checks]
