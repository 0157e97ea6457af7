"""Processes of their own that import Feast, as quickly as that goes."""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest

QUICK_IMPORT = {"PYTHONOPTIMIZE": "1"}
"""For the environment of a process that imports Feast. Most of that import is typeguard's preparing of checks, which
optimized Python leaves out; it leaves out asserts too, so this is for processes that have none.
`tests/docs/test_readme.py` runs Feast's commands without it.
"""


def spawned(target: Callable[..., None], *arguments: Any) -> Any:
    """A started process that imports everything anew to call ``target``, which must not assert."""
    assert "assert " not in inspect.getsource(target)
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK_IMPORT.items():
            patch.setenv(name, value)
        process.start()
    return process
