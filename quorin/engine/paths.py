"""Paths become absolute when they are passed, so a process may change its directory later."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute form of a path that is kept after the call. Symbolic links and ``..`` stay as they are."""
    return Path(path).absolute()


@lru_cache(maxsize=64)
def absolute_setting(text: str) -> str:
    """The absolute form of a path from the environment, relative to the directory where the process first read it."""
    return str(absolute(text))
