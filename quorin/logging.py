"""Structured logging on structlog. Nothing is configured until an application asks with :func:`configure`.

Until then, events of level WARNING and above go to standard error as one readable line each, and lower ones nowhere.
"""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from typing import Any

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
        json = not sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def get_logger(name: str) -> Any:
    """A logger whose events carry ``name``; it obeys whatever is configured when it logs."""
    return _Logger(name)


def bind(**context: Any) -> AbstractContextManager[Any]:
    """Add fields to every event logged inside a ``with`` block, in this thread or task."""
    return structlog.contextvars.bound_contextvars(**context)


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
            logger = structlog.wrap_logger(structlog.PrintLogger(sys.stderr), wrapper_class=quiet)
        return getattr(logger.bind(logger=self._name), attribute)
