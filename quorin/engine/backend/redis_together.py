"""Appends to several logs at once: all masters work on their parts while the others do on theirs.

Each log's entries are one command, as in an append to one log. All are sent before the first answer is read, by one
thread: with as many threads as logs, small parts take several times as long, and large ones no less. What a server
refuses, because it is not the master now or a slot is being
moved, is appended again as a single log's entries are: with all retries, and where the log is then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from quorin.errors import ConnectionFailedError, LogFullError, QuorinError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from quorin.engine.backend.redis_connection import RedisServer
    from quorin.engine.log.token import Token

    Entries = Sequence[tuple[str, bytes]]
    Result = Token | QuorinError | None


class TogetherLog(Protocol):
    """What is needed of a log."""

    @property
    def server(self) -> RedisServer:
        """Its connections."""

    def append(self, entries: Entries, *, max_entries: int | None = None) -> list[Token]:
        """Append as often as needed."""

    def prepared_append(self, entries: Entries, max_entries: int | None) -> tuple[bytes, Callable[[Any], Token | None]]:
        """The command of one append, and what makes the token of its answer; None if the log is not there yet."""


def append_together(parts: Sequence[tuple[TogetherLog, Entries]], max_entries: int | None) -> list[Token | QuorinError]:
    """See :meth:`quorin.engine.backend.Backend.append_together`."""
    results = _try_together(parts, range(len(parts)), max_entries)
    failed = [number for number, result in results.items() if result is None or _is_away(result)]
    while failed:
        number = failed.pop(0)
        results[number] = _append_alone(*parts[number], max_entries)
        if _is_away(results[number]):
            # A master is away, and was for all retries: the others get one more attempt, and not as long each.
            results |= _try_together(parts, failed, max_entries)
            failed = [other for other in failed if results[other] is None]
    return [result for number in range(len(parts)) if (result := results[number]) is not None]


def _append_alone(log: TogetherLog, entries: Entries, max_entries: int | None) -> Token | QuorinError:
    try:
        return log.append(entries, max_entries=max_entries)[-1]
    except (ConnectionFailedError, LogFullError) as error:
        return error


def _is_away(result: Result) -> bool:
    return isinstance(result, ConnectionFailedError)


def _try_together(
    parts: Sequence[tuple[TogetherLog, Entries]], numbers: Iterable[int], max_entries: int | None
) -> dict[int, Result]:
    """One attempt for some of the parts; None where the log must be created first."""
    results: dict[int, Result] = {}
    by_server: dict[RedisServer, list[int]] = {}
    for number in numbers:
        by_server.setdefault(parts[number][0].server, []).append(number)
    sent = []
    try:
        for server, of_server in by_server.items():
            appends = [parts[number][0].prepared_append(parts[number][1], max_entries) for number in of_server]
            try:
                sent.append((server, server.start(command for command, _ in appends), of_server, appends))
            except ConnectionFailedError as error:
                results |= dict.fromkeys(of_server, error)
        while sent:
            server, exchange, of_server, appends = sent.pop(0)
            try:
                answers = server.finish(exchange, len(of_server))
            except ConnectionFailedError as error:
                results |= dict.fromkeys(of_server, error)
                continue
            for number, (_, token_of), answer in zip(of_server, appends, answers, strict=True):
                results[number] = _result(token_of, answer)
    finally:
        for server, exchange, *_ in sent:  # Interrupted: nobody reads these answers.
            server.abandon(exchange)
    return results


def _result(token_of: Callable[[Any], Token | None], answer: Any) -> Result:
    if isinstance(answer, QuorinError):
        return answer
    try:
        return token_of(answer)
    except LogFullError as error:
        return error
