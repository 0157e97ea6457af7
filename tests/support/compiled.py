"""The kernels of a test run, compiled once: on a fresh machine every worker would compile them, at the same time.

Run as ``python -m tests.support.compiled``, it compiles them, and :func:`wait_for_kernels` waits until that is done.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def compile_beside() -> subprocess.Popen[bytes]:
    """A process that compiles what is not compiled, while the workers of a run import what they test."""
    return subprocess.Popen([sys.executable, "-m", __name__], cwd=ROOT)


def wait_for_kernels() -> None:
    with _lock(fcntl.LOCK_SH):
        pass


@contextmanager
def _lock(kind: int) -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"quorin-tests-{os.getuid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    with _lock(fcntl.LOCK_EX):
        from quorin.engine import kernels

        kernels.load()
