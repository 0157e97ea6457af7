"""What reads ask for beyond their features: set for a block of code, and seen by every read in it.

A context variable holds it, so threads and tasks do not see each other's; tasks and threads that asyncio starts inside
the block do.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from feast_quorin.read.ages import Limits, limits_of
from feast_quorin.read.pins import Pins, pins_of
from quorin import assembly
from quorin.wal import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from quorin.shm import Segment

Result = TypeVar("Result")

DEFAULT_TIMEOUT_MS = 100.0


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a read asks for.

    ``at_least``: rows as new as a token; the read waits for them, at most ``timeout_ms``. ``limits``: the ages up to
    which features are served. ``consistent_ms``: milliseconds within which all rows of an answer are read as they are
    at one position of the log. ``pins``: the generations that are read of some views. ``may_wait``: whether this
    thread may wait for other machines, which are asked for rows that this one does not hold.
    """

    at_least: Token | None = None
    limits: Limits = ()
    consistent_ms: float | None = None
    timeout_ms: float = DEFAULT_TIMEOUT_MS
    may_wait: bool = True
    pins: Pins | None = None


_NOTHING = ReadOptions()
_AT_ONCE = ReadOptions(may_wait=False)
_OPTIONS: ContextVar[ReadOptions] = ContextVar("feast_quorin_read_options", default=_NOTHING)

current = _OPTIONS.get
"""What reads of this context ask for."""


@contextmanager
def reading_with(**changes: Any) -> Iterator[None]:
    """Change fields of :class:`Asked` for the reads in a ``with`` block; the others stay as they are outside."""
    before = _OPTIONS.set(replace(_OPTIONS.get(), **changes))
    try:
        yield
    finally:
        _OPTIONS.reset(before)


class AtOnce:
    """Reads in a ``with`` block of this do not wait for other machines. A class, as it is entered for every request.

    :raises UnfinishedError: at the read, with the rest of a compiled request, if another machine holds a row.
    :raises WouldWaitError: so does Feast's own path, which cannot go on.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        options = _OPTIONS.get()
        self._before = _OPTIONS.set(_AT_ONCE if options is _NOTHING else replace(options, may_wait=False))

    def __exit__(self, *_: object) -> None:
        _OPTIONS.reset(self._before)


def finish(asking: assembly.Asking[Result]) -> Result:
    """The result of work for which other machines may have to be asked.

    :raises UnfinishedError: inside :class:`AtOnce`, if they have to be.
    """
    return assembly.finish(asking) if _OPTIONS.get().may_wait else assembly.at_once(asking)


@contextmanager
def at_least(token: Token | str, *, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Iterator[None]:
    """Reads in this ``with`` block show everything up to a token: a write's, or :func:`last_token`'s.

    A read that would show less waits for up to ``timeout_ms`` for each view, and then raises.

    :raises TokenError: for a text that is no token; and, at the read, for a token of another log than the view's.
    :raises NotYetAppliedError: at the read, after ``timeout_ms``.
    """
    with reading_with(at_least=Token.of(token), timeout_ms=timeout_ms):
        yield


def wait_for(segment: Segment, *, apply: Callable[[], object], helps_at_once: bool) -> None:
    """Wait until a segment shows what reads of this context ask for; as :func:`quorin.assembly.wait_for`."""
    options = _OPTIONS.get()
    if options.at_least is not None:
        timeout_ms = options.timeout_ms
        assembly.wait_for(segment, options.at_least, timeout_ms=timeout_ms, apply=apply, helps_at_once=helps_at_once)


@contextmanager
def max_age(limit: Any) -> Iterator[None]:
    """Reads in this ``with`` block serve no values that are older than a limit: they are null, with the status
    ``OUTSIDE_MAX_AGE``.

    A limit is a number of seconds or a ``timedelta``, for all views or by name: ``{"view": 3600, "view:feature": 60}``.
    A row's age is the time since its event time, by the system's clock at the read. Limits of the settings hold too.

    :raises InvalidMaxAgeError: for another limit; and, at the read, for a feature that its view does not have.
    """
    with reading_with(limits=limits_of(limit)):
        yield


@contextmanager
def consistent(*, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> Iterator[None]:
    """An answer in this ``with`` block has the rows of all its views as they are at one position of the log.

    :raises InconsistentReadError: at the read, if that was not possible within ``timeout_ms``. :raises ValueError: for
        a time-out that is not above 0.
    """
    with reading_with(consistent_ms=positive_ms("timeout_ms", timeout_ms)):
        yield


@contextmanager
def at_generation(pins: Mapping[str, int | str]) -> Iterator[None]:
    """Reads in this ``with`` block are of these generations: by feature view the number of one, or the newest of a
    version of the view's schema (``"v3"``). Other views are read as ever, and so are reads outside the block.

    A generation is pinned from the first read of its view in the block until the block ends, and up to a minute longer;
    what is pinned gets no new rows once another generation is current. A feature that it does not have is null.

    :raises InvalidPinError: for other pins; and, at the read, for a view that there is not.
    :raises GenerationNotFoundError: at the read, if this machine does not have the generation any more.
    :raises PinLimitError: at the read, if as many other generations of the view are pinned as may be.
    """
    with reading_with(pins=pins_of(pins)):
        yield


def positive_ms(where: str, value: Any) -> float:
    """A number of milliseconds above 0. :raises ValueError: naming it otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where}: expected a number of milliseconds above 0, got {value!r}")
    return value
