"""Processes forked from a server that has imported what they need, as a process is mostly its imports.

The server starts with the first process. What it imports must start no thread that a forked process would miss, see
`tests/feast/test_processes.py`. All its processes have one seed for the hashes of strings: Feast orders the features of
a view by a set, and answers of two servers are compared.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.freezing import send_signal
from tests.support.preloaded import PRELOADED

_preloaded: list[str] = []


class Process(ForkServerProcess):
    """A process with the environment of the moment when it was started, as a spawned one has."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONHASHSEED", "0")
            patch.setenv(PRELOADED, " ".join(_preloaded))
            forkserver.ensure_running()
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class Context(ForkServerContext):
    """The start method ``forkserver``, whose processes are of the class :class:`Process`."""

    Process: Any = Process


context = Context()
context.set_forkserver_preload(["tests.support.preloaded"])


def preload(*modules: str) -> None:
    """Let the server import these too. For when test modules are imported: once it runs, it imports nothing more."""
    _preloaded.extend(module for module in modules if module not in _preloaded)


class Forked:
    """A command that runs in a forked process, with the methods of ``subprocess.Popen`` that tests need. Its streams
    go to the given files; standard error, if none is given, to a pipe, whose other end is ``stderr``.
    """

    def __init__(
        self,
        main: Callable[[], Any],
        words: list[str],
        environment: dict[str, str],
        *,
        directory: Path | None = None,
        out: IO[Any] | None = None,
        err: IO[Any] | None = None,
    ) -> None:
        self.stderr: IO[str] | None = None
        if err is None:
            read, written = os.pipe()
            self.stderr = os.fdopen(read)
        else:
            written = os.dup(err.fileno())
        streams = [Connection(os.dup(1 if out is None else out.fileno())), Connection(written)]
        arguments = (main, words, environment, str(directory or Path.cwd()), streams)
        self._process = context.Process(target=_become, args=arguments)
        self._process.start()
        for stream in streams:
            stream.close()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked command", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """All of its standard error, after its end. It must fit into a pipe."""
        self.wait(timeout)
        assert self.stderr is not None
        with self.stderr:
            return None, self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            send_signal(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End it if it still runs, and close the pipe."""
        self.kill()
        self.wait()
        if self.stderr is not None:
            self.stderr.close()


def run(
    main: Callable[[], Any],
    words: list[str],
    environment: dict[str, str],
    *,
    directory: Path | None = None,
    timeout: float = 180,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end: its output and exit code."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Forked(main, words, environment, directory=directory, out=out, err=err)
        try:
            process.wait(timeout)
        finally:
            process.close()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, process.wait(), out.read(), err.read())


def _become(
    main: Callable[[], Any],
    words: list[str],
    environment: dict[str, str],
    directory: str,
    streams: list[Connection],
) -> None:
    os.dup2(sys.stdin.fileno(), 0)  # its own, which reads nothing; Uvicorn gives it to its workers
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.argv = words
    main()


def run_module() -> None:
    """What ``python -m`` does with a module and its arguments."""
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
