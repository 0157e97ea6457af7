"""What reads ask for beyond their features: set for a block of code, and seen by every read in it.

A context variable holds it, so threads and tasks do not see each other's; tasks and threads that asyncio starts inside
the block do.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from quorin.wal import Token

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_TIMEOUT_MS = 100.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a read asks for.

    ``at_least``: rows as new as a token; the read waits for them, at most ``timeout_ms``.
    """

    at_least: Token | None = None
    timeout_ms: float = DEFAULT_TIMEOUT_MS


_NOTHING = Asked()
_ASKED: ContextVar[Asked] = ContextVar("feast_quorin_asked", default=_NOTHING)

current = _ASKED.get
"""What reads of this context ask for."""


@contextmanager
def asking(**changes: Any) -> Iterator[None]:
    """Change fields of :class:`Asked` for the reads in a ``with`` block; the others stay as they are outside."""
    before = _ASKED.set(replace(_ASKED.get(), **changes))
    try:
        yield
    finally:
        _ASKED.reset(before)


@contextmanager
def at_least(token: Token | str, *, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Iterator[None]:
    """Reads in this ``with`` block show everything up to a token: a write's, or :func:`last_token`'s.

    A read that would show less waits for up to ``timeout_ms`` for each view, and then raises.

    :raises TokenError: for a text that is no token; and, at the read, for a token of another log than the view's.
    :raises NotYetAppliedError: at the read, after ``timeout_ms``.
    """
    with asking(at_least=Token.of(token), timeout_ms=timeout_ms):
        yield
