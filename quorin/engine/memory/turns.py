"""Replacing a small file by what is made of its content, one process after another.

They take turns by the lock of a second file. Of a holder that is frozen the lock is not waited for without end: after
some seconds another process goes on, and what the frozen one does when it wakes has no effect. That rests on its
*pending* file alone, which is made at the beginning of a turn and gets the file's name at its end: whoever begins a
turn first removes all others, and the rename of a file that was removed fails. So between the content that a process
has read and the one that it puts in place no other was put there, with the lock or without it.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from quorin.engine.memory.access import why_not
from quorin.engine.memory.lock import lock_if_there
from quorin.errors import SharedMemoryError

if TYPE_CHECKING:
    from pathlib import Path

    from quorin.engine.memory.access import Access

FROZEN_AFTER_SECONDS = 10.0
_RETRY_SECONDS = 0.001
_TAG_BYTES = 4


def replace_in_turn(path: Path, change: Callable[[], tuple[str, Access] | None]) -> bool:
    """Replace a file by the text that ``change`` returns, which is on the disk before it gets its name; False if that
    is None.

    ``change`` reads the file. It is called again if another process replaced the file meanwhile, which happens only if
    this one was frozen, or took longer than :data:`FROZEN_AFTER_SECONDS`. If it raises, the file stays.

    :raises SharedMemoryError: if the system refuses; the old file stays.
    """
    while True:
        with _turn(path), _pending(path) as (aside, file):
            changed = change()
            if changed is None:
                return False
            text, access = changed
            _write(file, text, access, path)
            # It has no name any more if another process began a turn since.
            with suppress(FileNotFoundError):
                aside.rename(path)
                return True


def make_empty(path: Path) -> Path:
    """Make an empty file, mode 0600, unless it is there. :raises SharedMemoryError: if the system refuses."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        reason = f"{error.strerror}{why_not(path, writing=True)}"
        raise SharedMemoryError(error.errno, f"cannot make {path}: {reason}") from error
    return path


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """The lock beside a file. Who has had it for too long loses it: its file makes room for another."""
    lock_path = path.with_suffix(".lock")
    waits_until = time.monotonic() + FROZEN_AFTER_SECONDS
    while (lock := lock_if_there(make_empty(lock_path))) is None:
        if time.monotonic() > waits_until:
            lock_path.unlink(missing_ok=True)
            waits_until += FROZEN_AFTER_SECONDS
        time.sleep(_RETRY_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _pending(path: Path) -> Iterator[tuple[Path, IO[str]]]:
    """A new pending file, the only one from here on until another process begins a turn."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(_TAG_BYTES)}.pending")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SharedMemoryError(error.errno, f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        try:
            for other in path.parent.glob(f"{path.name}.{'[0-9a-f]' * 2 * _TAG_BYTES}.pending"):
                if other != aside:
                    other.unlink(missing_ok=True)
            yield aside, file
        finally:
            aside.unlink(missing_ok=True)


def _write(file: IO[str], text: str, access: Access, path: Path) -> None:
    """Write what is to replace a file, and wait until the disk has it."""
    try:
        access.apply(file.fileno(), path)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise SharedMemoryError(error.errno, f"cannot write {path}: {error.strerror}") from error
