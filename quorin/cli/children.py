"""Processes that commands start: of the same installation, and never longer than the command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from quorin.errors import QuorinError

_MAX_START_SECONDS = 300
_MAX_STOP_SECONDS = 10


class ChildFailedError(QuorinError, RuntimeError):
    """A process that a command started failed, or ended before it was ready."""


@contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run ``target(ready, *arguments)`` in a new process inside a ``with`` block, which begins when it calls ``ready``.

    The child has this process's interpreter and ``sys.path``, wherever the command was started. It is sent SIGTERM at
    the end of the block, and SIGKILL if that does not end it; it also ends if this process is killed. Ctrl-C is this
    process's matter, which then ends the block.

    :raises ChildFailedError: with the reason, if the target raises before it is ready.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, target, arguments), daemon=True)
    resource_tracker.ensure_running()  # It unblocks SIGINT when it starts.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # The child inherits that; here it is held back.
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    sender.close()
    try:
        if reason := _failure(receiver):
            raise ChildFailedError(f"a process of this command failed: {reason}")
        yield
    finally:
        process.terminate()
        process.join(_MAX_STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        receiver.close()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as ``sys.exit`` does: through all ``with`` blocks, which then clean up."""
    handler = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _failure(receiver: Connection) -> str | None:
    """Why a child is not ready; None once it is."""
    if not receiver.poll(_MAX_START_SECONDS):
        return f"it was not ready after {_MAX_START_SECONDS} s"
    try:
        reason: str | None = receiver.recv()
    except EOFError:
        return "it ended before it was ready"
    return reason


def _run(sender: Connection, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    try:
        target(lambda: sender.send(None), *arguments)
    except Exception as error:  # noqa: BLE001 - the command reports it
        sender.send(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _end_after(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
