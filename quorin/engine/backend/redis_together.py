"""Appends to several logs at once: all masters work on their parts while the others do on theirs.

Each log's entries are one script, as in an append to one log. All scripts are sent before the first answer is read, by
one thread: as many threads as logs are slower, since a part of a batch is smaller than what it costs to change between
threads (``benchmarks/partitions.py``). What a server refuses, because it is not the master now or a slot is being
moved, is appended again as a single log's entries are: with all retries, and where the log is then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from quorin.errors import ConnectionFailedError, LogFullError, QuorinError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from quorin.engine.backend.redis_connection import RedisServer
    from quorin.engine.log.token import Token

    Entries = Sequence[tuple[str, bytes]]
    Results = dict[int, Token | QuorinError]


class TogetherLog(Protocol):
    """What is needed of a log."""

    @property
    def server(self) -> RedisServer:
        """Its connections."""

    def append(self, entries: Entries, *, max_entries: int | None = None) -> list[Token]:
        """Append as often as needed."""

    def append_command(self, entries: Entries, max_entries: int | None) -> tuple[Any, ...]:
        """The words of one append."""

    def appended(self, answer: Any, count: int, max_entries: int | None, asked_at: float) -> list[Token]:
        """The tokens in its answer."""


def append_together(parts: Sequence[tuple[TogetherLog, Entries]], max_entries: int | None) -> list[Token | QuorinError]:
    """See :meth:`quorin.engine.backend.Backend.append_together`."""
    results = _try_together(parts, range(len(parts)), max_entries)
    failed = [number for number, result in results.items() if isinstance(result, ConnectionFailedError)]
    while failed:
        number = failed.pop(0)
        log, entries = parts[number]
        try:
            results[number] = log.append(entries, max_entries=max_entries)[-1]
        except LogFullError as error:
            results[number] = error
        except ConnectionFailedError as error:
            # A master is away, and was for all retries: the others get one more attempt, and not as long each.
            results[number] = error
            results |= _try_together(parts, failed, max_entries)
            break
    return [results[number] for number in range(len(parts))]


def _try_together(
    parts: Sequence[tuple[TogetherLog, Entries]], numbers: Iterable[int], max_entries: int | None
) -> Results:
    """One attempt for some of the parts."""
    results: Results = {}
    by_server: dict[RedisServer, list[int]] = {}
    for number in numbers:
        by_server.setdefault(parts[number][0].server, []).append(number)
    asked_at, sent = time.monotonic(), []
    try:
        for server, of_server in by_server.items():
            try:
                sent.append(
                    (server, server.start(parts[n][0].append_command(parts[n][1], max_entries) for n in of_server))
                )
            except ConnectionFailedError as error:
                results |= dict.fromkeys(of_server, error)
        while sent:
            server, exchange = sent.pop(0)
            of_server = by_server[server]
            try:
                answers = server.finish(exchange, len(of_server))
            except ConnectionFailedError as error:
                results |= dict.fromkeys(of_server, error)
                continue
            for number, answer in zip(of_server, answers, strict=True):
                log, entries = parts[number]
                results[number] = _result(log, answer, len(entries), max_entries, asked_at)
    finally:
        for server, exchange in sent:  # Interrupted: nobody reads these answers.
            server.abandon(exchange)
    return results


def _result(log: TogetherLog, answer: Any, count: int, max_entries: int | None, asked_at: float) -> Token | QuorinError:
    if isinstance(answer, QuorinError):
        return answer
    try:
        return log.appended(answer, count, max_entries, asked_at)[-1]
    except LogFullError as error:
        return error
