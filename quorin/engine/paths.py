"""Paths are made absolute when they are given: a process that changes its directory later keeps its files."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path that is kept longer than the call it was given to. Symbolic links and ``..`` stay as they are."""
    return Path(path).absolute()


@lru_cache(maxsize=64)
def absolute_setting(text: str) -> str:
    """A path from the environment, which is given once for the whole process: relative to where the process was when
    it first read it.
    """
    return str(absolute(text))
