"""The command ``quorin`` in a process forked from a server that has imported it, as a command is mostly its imports."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from quorin.cli import main
from tests.support import consumers

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([consumers.__name__, __name__])
for name in ("pandas", "quorin.wal", "quorin.wal_consumer", "quorin.offline", "quorin.assembly", "prometheus_client"):
    importlib.import_module(name)  # what commands import when they need it


def run_quorin(
    words: list[str], environment: dict[str, str], *, directory: Path | None = None, timeout: float = 180
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end: its output and exit code, which is the signal's negative number if one ended it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        streams = [Connection(os.dup(file.fileno())) for file in (out, err)]
        process = context.Process(target=_become, args=(words, environment, str(directory or Path.cwd()), streams))
        process.start()
        for stream in streams:
            stream.close()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, process.exitcode, out.read(), err.read())


def _become(words: list[str], environment: dict[str, str], directory: str, streams: list[Connection]) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False)) for number in (1, 2))  # type: ignore[arg-type]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.argv = ["quorin", *words]
    main()
