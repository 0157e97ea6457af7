"""Work that asks other servers in between: written once, as a generator, and done by a thread or an event loop."""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from quorin.engine.routing.connections import Answered, Connections, Outgoing, UnansweredError

T = TypeVar("T")


class Exchange(NamedTuple):
    """Requests to be sent at the same time, and how long each may take."""

    connections: Connections
    requests: Sequence[Outgoing]
    timeout_seconds: float


Asking = Generator[Exchange, "list[Answered | UnansweredError]", T]
"""Yields what is to be asked, gets the answers, and returns a result."""


class WouldWaitError(Exception):
    """A result needs other servers, and the thread that wants it must not wait for them."""


class UnfinishedError(WouldWaitError):
    """The same, with the work as far as it is done."""

    def __init__(self, asking: Asking[Any], wanted: Exchange) -> None:
        super().__init__()
        self._begun = asking, wanted

    def rest(self) -> Coroutine[Any, Any, Any]:
        """The result; an event loop waits for the answers. The call itself sends what is wanted. To be called once."""
        return begin(*self._begun)


def at_once(asking: Asking[T]) -> T:
    """The result of work that asks nobody. :raises UnfinishedError: if it wants to."""
    try:
        wanted = next(asking)
    except StopIteration as end:
        result: T = end.value
        return result
    raise UnfinishedError(asking, wanted)


def finish(asking: Asking[T]) -> T:
    """The result; this thread waits for the answers."""
    try:
        wanted = next(asking)
        while True:
            answers = wanted.connections.exchange(wanted.requests, timeout_seconds=wanted.timeout_seconds)
            wanted = asking.send(answers)
    except StopIteration as end:
        result: T = end.value
        return result


async def finish_async(asking: Asking[T]) -> T:
    """The result; an event loop waits for the answers."""
    try:
        return at_once(asking)
    except UnfinishedError as unfinished:
        rest = unfinished.rest()
    result: T = await rest
    return result


def begin(asking: Asking[T], wanted: Exchange) -> Coroutine[Any, Any, T]:
    """The result of work that wants something first; an event loop waits for the answers. The call itself sends what is
    wanted.
    """
    from quorin.engine.routing.unthreaded import exchange

    async def rest(answers: Coroutine[Any, Any, list[Answered | UnansweredError]]) -> T:
        try:
            while True:
                answers = exchange(*asking.send(await answers))
        except StopIteration as end:
            result: T = end.value
            return result

    return rest(exchange(*wanted))


def all_of(several: Sequence[Asking[T]]) -> Asking[list[T]]:
    """The results of several that ask through one router: what they want goes out at the same time."""
    results: dict[int, T] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(several)))
    while answers:
        wanted: dict[int, Exchange] = {}
        for number, answer in answers.items():
            try:
                wanted[number] = several[number].send(answer)
            except StopIteration as end:
                results[number] = end.value
        if not wanted:
            break
        exchanges = wanted.values()
        requests = [request for one in exchanges for request in one.requests]
        timeout_seconds = max(one.timeout_seconds for one in exchanges)
        found = iter((yield Exchange(next(iter(exchanges)).connections, requests, timeout_seconds)))
        answers = {number: list(islice(found, len(one.requests))) for number, one in wanted.items()}
    return [results[number] for number in range(len(several))]
