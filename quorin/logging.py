"""Structured logging on structlog, and what of a URL may be shown.

structlog is imported by :func:`configure`, or by the first event that is shown: it imports Rich where that is
installed.

Nothing is configured until an application calls :func:`configure`.

Until then, events of level WARNING and above go to standard error as one readable line each; lower ones are discarded.

An event that cannot be written (standard error is full, closed, or a pipe without a reader) is dropped and counted in
``quorin_log_events_dropped_total``. Logging never raises.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TextIO, cast

from quorin.engine import forks
from quorin.engine.urls import HTTP_FORM, REDIS_FORM, REDIS_SCHEMES, URL_FORM, is_http, is_malformed, shown

__all__ = [
    "HTTP_FORM",
    "REDIS_FORM",
    "REDIS_SCHEMES",
    "URL_FORM",
    "bind",
    "configure",
    "get_logger",
    "is_http",
    "is_malformed",
    "shown",
]


def configure(level: str = "INFO", json: bool | None = True) -> None:
    """Print events of ``level`` and above to standard error, as JSON lines or, with ``json=False``, as readable text.

    ``json=None`` prints readable text in a terminal, and JSON lines otherwise.

    :raises ValueError: for a level that the standard library's logging does not define.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"level must be one of {sorted(logging.getLevelNamesMapping())}, got {level!r}")
    if json is None:
        json = not _standard_error().isatty()
    import structlog

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
    """A logger whose events carry ``name``. It uses the configuration at the time of each event."""
    return _Logger(name)


def bind(**context: Any) -> AbstractContextManager[Any]:
    """Add fields to every event that this thread or task logs inside a ``with`` block."""
    import structlog

    return structlog.contextvars.bound_contextvars(**context)


def count_dropped_with(count: Callable[[], None]) -> None:
    """Call ``count`` for each event that is dropped from now on."""
    global _count_dropped
    _count_dropped = count


def _ignore() -> None:
    """Count nothing, until :mod:`quorin.metrics` installs its counter."""


_count_dropped = _ignore
_EVENTS = "debug", "info", "warning", "error", "critical", "exception"
_QUIET = _EVENTS[:2]
"""Events that are discarded until an application configures structlog, for which it has to import it."""
_counting = threading.local()
_writing = threading.RLock()
"""Held while an event is written, and during forks: structlog's lock of a stream, which a child would otherwise inherit
from a thread in the middle of a line, would never be released there.
"""


@cache
def _guard_forks() -> None:
    forks.hold_during_forks(_writing)


def _drop() -> None:
    """Count a dropped event, except one that the counting itself logs, which would recurse without end."""
    if not getattr(_counting, "is_on", False):
        _counting.is_on = True
        try:
            _count_dropped()
        finally:
            _counting.is_on = False


def _discard(*_: Any, **__: Any) -> None:
    """Log nothing."""


def _standard_error() -> TextIO:
    """Standard error; if the process has none, a stream that refuses writes."""
    return cast("TextIO", io.TextIOBase()) if sys.stderr is None else sys.stderr


class _Logger:
    """A lazy logger: structlog's defaults would print every level to standard output, which a library must not do."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute not in _EVENTS:
            return getattr(self._bound(), attribute)
        if "structlog" not in sys.modules and attribute in _QUIET:
            return _discard

        def log_or_drop(*args: Any, **fields: Any) -> Any:
            try:
                with _writing:
                    _guard_forks()
                    return getattr(self._bound(), attribute)(*args, **fields)
            except Exception:  # noqa: BLE001 - streams fail, and an application's processors may raise anything
                _drop()
                return None

        return log_or_drop

    def _bound(self) -> Any:
        import structlog

        if structlog.is_configured():
            logger = structlog.get_logger()
        else:
            quiet = structlog.make_filtering_bound_logger(logging.WARNING)
            logger = structlog.wrap_logger(structlog.PrintLogger(_standard_error()), wrapper_class=quiet)
        return logger.bind(logger=self._name)
