"""Processes of other users, for tests of who may read and write shared memory. Only root can start them."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import pytest

from quorin import assembly, evolution, layout, snapshot, watchdog
from quorin.engine import kernels
from quorin.engine.consumer.precedence import take_turn
from quorin.engine.memory.growth import grow
from quorin.engine.memory.lock import is_locked
from quorin.engine.ops import health
from quorin.engine.ops.readiness import readiness
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.support.schemas import Scalars

needs_root = pytest.mark.other_users
"""For tests that start a :class:`User`. ``conftest.py`` leaves them out, and says so, if they do not run as root."""

NextScalars = make_schema("Scalars", [*Scalars.fields, FeatureField("e", dtype.float32)], version=2)
NAMES = {
    item.__name__.rpartition(".")[2]: item
    for item in (SegmentRegistry, Scalars, assembly, evolution, grow, health, is_locked, layout, os, pathlib, snapshot)
} | {"NextScalars": NextScalars, "readiness": readiness, "take_turn": take_turn, "watchdog": watchdog}
"""What the code of a :class:`User` may use."""


class UserError(Exception):
    """What a statement of the other process raised: its type and text."""


class User:
    """A process of a user, which runs statements and evaluates expressions one after the other.

    It is forked: another user may have no access to the directory of this Python, to import anything or to read its
    cache of kernels.
    """

    def __init__(self, user: int, groups: Sequence[int] = ()) -> None:
        kernels.load()
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, user, list(groups)), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, code: str) -> Any:
        """The value of an expression; None for a statement. :raises UserError: if it raised."""
        self._connection.send(code)
        answer, error = self._connection.recv()
        if error is not None:
            raise UserError(error)
        return answer

    def __enter__(self) -> User:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.send(None)  # A later child has our end too, so closing it would not tell this one.
        self._process.join()
        self._process.close()
        self._connection.close()


def _serve(connection: Connection, user: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setgid(user)
    os.setuid(user)
    names: dict[str, Any] = dict(NAMES)
    while (code := connection.recv()) is not None:
        connection.send(_result(code, names))


def _result(code: str, names: dict[str, Any]) -> tuple[Any, str | None]:
    try:
        try:
            compiled = compile(code, "test", "eval")
        except SyntaxError:
            exec(code, names)  # noqa: S102 - a test's own code
            return None, None
        return eval(compiled, names), None  # noqa: S307 - a test's own code
    except Exception as error:  # noqa: BLE001 - the test expects it, or fails with it
        return None, f"{type(error).__name__}: {error}"
