"""The URLs at which the ``quorin serve`` processes of a node can be reached, each for as long as its process lives.

A URL is the content of a file ``quorin-node-<identity>.serve-<random>``, which its process has locked. The kernel
releases the lock when the process ends, however it does, so no URL outlives its server. A process that was killed
leaves a file without a lock, which the next reader removes.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from quorin.engine.memory.access import Access
from quorin.engine.memory.lock import FileLock, lock_if_there
from quorin.engine.urls import HTTP_FORM, is_http, shown
from quorin.errors import SharedMemoryError

if TYPE_CHECKING:
    from pathlib import Path

    from quorin.engine.memory.node import Node

_PURPOSE = "serve-"
_PENDING = ".pending"
_MAX_BYTES = 4096


class RegisteredAddress:
    """A URL of this process on its node, until :meth:`release` or the end of the process. A forked child has none."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self._path = path
        self._lock = lock

    def release(self) -> None:
        """Take the URL back. Does nothing in a forked child."""
        if self._lock.is_ours:
            self._path.unlink(missing_ok=True)
            self._lock.release()


def register_address(node: Node, url: str) -> RegisteredAddress:
    """Let the node say that this process serves at ``url``, for as long as the result is kept and the process lives.

    :raises ValueError: for a URL of another form. :raises SharedMemoryError: if the node is another user's.
    """
    if not is_http(url):
        raise ValueError(f"expected {HTTP_FORM}, got {shown(url)!r}")
    # It gets its name when it is locked and written: a reader takes a file without a lock for one that was left.
    aside = node.lock_path(f"{_PURPOSE}{secrets.token_hex(8)}{_PENDING}")
    path = aside.with_suffix("")
    lock = FileLock.try_acquire(aside)
    if lock is None:
        raise SharedMemoryError(f"cannot lock {aside}, which this process has made: another process has its lock")
    try:
        with aside.open("w") as file:
            Access.of(node.beside("")).apply(file.fileno(), aside)
            file.write(url.rstrip("/"))
        aside.rename(path)
    except OSError as error:
        lock.release()
        aside.unlink(missing_ok=True)
        raise SharedMemoryError(error.errno, f"cannot write {path}: {error.strerror}") from error
    return RegisteredAddress(path, lock)


def addresses(node: Node) -> tuple[str, ...]:
    """The URLs of the node's servers that live, in order."""
    state, own = node.state(), node.beside("")
    stems = (own.name.replace(f"{state.identity:016x}", f"{known:016x}") for known in (state.identity, *state.former))
    found = (_url(path) for stem in stems for path in own.parent.glob(f"{stem}.{_PURPOSE}*"))
    return tuple(sorted({url for url in found if url is not None}))


def _url(path: Path) -> str | None:
    """The URL in a file; None if it is not complete, or if its process has ended."""
    if path.suffix == _PENDING:
        return None
    with suppress(SharedMemoryError):  # It is another user's, who removes it.
        lock = lock_if_there(path)
        if lock is not None:
            path.unlink(missing_ok=True)
            lock.release()
            return None
    try:
        with path.open("rb") as file:
            url = file.read(_MAX_BYTES).decode("ascii", "replace")
    except OSError:
        return None
    return url if is_http(url) else None
