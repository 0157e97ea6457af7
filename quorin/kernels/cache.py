"""Where compiled kernels are kept from one process to the next.

Numba would keep them beside the source, and take them for current as long as that one file has not changed. But kernels
are made of several files, may lie where nobody can write, and should leave nothing behind when the package is
uninstalled. So they are kept in the user's cache directory, under a digest of all that they are made of.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numba import config

_PACKAGE = Path(__file__).parent.parent
_SOURCES = ("abi.py", "format.py", "hashing.py", "schema.py")


@contextmanager
def own_cache() -> Iterator[None]:
    """Functions decorated inside are kept under ``~/.cache/quorin`` (``XDG_CACHE_HOME`` is heeded).

    Where that can't be written, or ``NUMBA_CACHE_DIR`` is set, numba decides as ever.
    """
    before = config.CACHE_DIR
    if not before:
        config.CACHE_DIR = str(directory())
    try:
        yield
    finally:
        config.CACHE_DIR = before


def directory() -> Path:
    """Where that is for this version of the kernels."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources())).hexdigest()[:16]
    return Path(home) / "quorin" / f"kernels-{digest}"


def sources() -> list[Path]:
    """The files that kernels are made of."""
    return [*sorted((_PACKAGE / "kernels").glob("*.py")), *(_PACKAGE / name for name in _SOURCES)]
