"""Work that asks other servers in between: written once, as a generator, and done by a thread or an event loop."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quorin.engine.routing.connections import Answered, Connections, Outgoing, UnansweredError

T = TypeVar("T")


class Exchange(NamedTuple):
    """Requests to be sent at the same time, and how long each may take."""

    connections: Connections
    requests: Sequence[Outgoing]
    timeout_seconds: float


Asking = Generator[Exchange, "list[Answered | UnansweredError]", T]
"""Yields what is to be asked, gets the answers, and returns a result."""


def done(asking: Asking[T]) -> T:
    """The result; this thread waits for the answers."""
    try:
        wanted = next(asking)
        while True:
            answers = wanted.connections.exchange(wanted.requests, timeout_seconds=wanted.timeout_seconds)
            wanted = asking.send(answers)
    except StopIteration as end:
        result: T = end.value
        return result


async def finished(asking: Asking[T], wanted: Exchange) -> T:
    """The result of work that has begun, and wants something; an event loop waits for the answers."""
    from quorin.engine.routing.unthreaded import exchange

    try:
        while True:
            answers = await exchange(wanted.connections, wanted.requests, timeout_seconds=wanted.timeout_seconds)
            wanted = asking.send(answers)
    except StopIteration as end:
        result: T = end.value
        return result
