"""Structured logging on structlog. Nothing is configured until an application asks with :func:`configure`.

Until then, events of level WARNING and above go to standard error as one readable line each, and lower ones nowhere.

An event that cannot be written (standard error is full, closed, or a pipe that nobody reads any more) is dropped and
counted, in ``quorin_log_events_dropped_total``. Logging never raises.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TextIO, cast

import structlog


def configure(level: str = "INFO", json: bool | None = True) -> None:
    """Print events from ``level`` up to standard error, as JSON lines or, with ``json=False``, for people; with
    ``json=None`` for people where standard error is a terminal.

    :raises ValueError: for a level that the standard library's logging does not know.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"level must be one of {sorted(logging.getLevelNamesMapping())}, got {level!r}")
    if json is None:
        json = not _standard_error().isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(_standard_error()),
    )


def get_logger(name: str) -> Any:
    """A logger whose events carry ``name``; it obeys whatever is configured when it logs."""
    return _Logger(name)


def bind(**context: Any) -> AbstractContextManager[Any]:
    """Add fields to every event logged inside a ``with`` block, in this thread or task."""
    return structlog.contextvars.bound_contextvars(**context)


def count_dropped_with(count: Callable[[], None]) -> None:
    """Call ``count`` for each event that is dropped from now on."""
    global _count_dropped
    _count_dropped = count


def _ignore() -> None:
    """Nothing counts until :mod:`quorin.metrics` does."""


_count_dropped = _ignore
_counting = threading.local()


def _drop() -> None:
    """Count a dropped event, but none that the counting itself logs: there would be no end to it."""
    if not getattr(_counting, "is_on", False):
        _counting.is_on = True
        try:
            _count_dropped()
        finally:
            _counting.is_on = False


def _standard_error() -> TextIO:
    """Standard error, or what refuses to be written to where the process was started without."""
    return cast("TextIO", io.TextIOBase()) if sys.stderr is None else sys.stderr


class _Logger:
    """structlog's own defaults print every level to standard output, which is not a library's to do."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if structlog.is_configured():
            logger = structlog.get_logger()
        else:
            quiet = structlog.make_filtering_bound_logger(logging.WARNING)
            logger = structlog.wrap_logger(structlog.PrintLogger(_standard_error()), wrapper_class=quiet)
        log = getattr(logger.bind(logger=self._name), attribute)

        def log_or_drop(*args: Any, **fields: Any) -> Any:
            try:
                return log(*args, **fields)
            except Exception:  # noqa: BLE001 - streams fail, and an application's processors may raise anything
                _drop()
                return None

        return log_or_drop
