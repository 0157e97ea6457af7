"""Logs of former numbers of partitions stay closed; what one took all the same goes to the logs of now.

Redis replicates asynchronously: a replica that takes over may lack that a log was closed, and accepts what producers
append that have not looked at the number since. So may a log that was wiped. Nodes read no former log behind its end,
which is in the control plane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.format.growth import Closed, Growth, State
from quorin.engine.log.appending import Appender
from quorin.engine.log.record import decode, is_of_load, translate
from quorin.errors import InvalidEntryError
from quorin.logging import get_logger
from quorin.schema import schema_from_json

if TYPE_CHECKING:
    from quorin.engine.backend import Backend, Log

_log = get_logger(__name__)


def check_closed_logs(backend: Backend) -> None:
    """Close former logs that are open, append what they have behind their ends to the logs of now, and report those
    that lost entries. Every step can be repeated, and any number of processes may do this at the same time.

    :raises ConnectionFailedError: if a log or the control plane cannot be reached.
    :raises LogFullError: if the logs of now are full; the entries stay where they are.
    """
    growth = Growth.parse(backend.control.growth())
    if growth.state is not State.settled:
        return
    for former in growth.former:
        for known in former.logs:
            _check(backend, growth, former.count, known)


def _check(backend: Backend, growth: Growth, count: int, known: Closed) -> None:
    log = backend.log(known.stream_key, known.partition, of=count)
    read = [known.end] if known.end else []
    identity, bounds = log.state(read)
    if not bounds.is_closed:
        log.close_for_appends(growth.number, growth.stream_keys)
        identity, bounds = log.state(read)
        _log.warning("closed_log_was_open", **_named(count, known), why="a replica that lacked the closing took over")
    is_other = identity != known.identity
    is_shorter = is_other or known.end in bounds.lost or bounds.last < known.end
    end = 0 if is_other else known.end
    if bounds.is_closed and bounds.last > end:
        moved = _move(backend, log, known.stream_key, end)
        identity, bounds = log.state()
        _log.warning("closed_log_had_more", **_named(count, known), moved_entries=moved)
    if bounds.is_closed and is_shorter:
        _note(backend, count, Closed(known.stream_key, known.partition, identity, bounds.last), known)


def _move(backend: Backend, log: Log, stream_key: str, end: int) -> int:
    """Append the entries behind a position to the logs of now, and remove them; returns their number. Those that cannot
    be read become dead letters.
    """
    appender, schemas = Appender(backend, stream_key, None, 0), backend.control.schemas()
    after = end
    while (found := log.read(after)).entries:
        for position, payload in found.entries:
            try:
                _append(appender, schemas, payload)
            except InvalidEntryError as error:
                log.bury(position, payload, str(error))
        after = found.through
    return log.cut(end, after)


def _append(appender: Appender, schemas: dict[str, str], payload: bytes) -> None:
    record = decode(payload)
    if record.schema_name not in schemas:
        raise InvalidEntryError(f"schema {record.schema_name!r} is unknown to the control plane")
    if is_of_load(payload):
        raise InvalidEntryError("rows of a load that was written to a log of a former number of partitions")
    schema = schema_from_json(schemas[record.schema_name])
    appender.append_batch(schema, translate(record, schema), record.kind, 0)


def _note(backend: Backend, count: int, found: Closed, known: Closed) -> None:
    """Store where a log ends that was longer; of several processes that see it, one reports it."""
    text = backend.control.growth()
    noted = Growth.parse(text).ended_at(count, found)
    if noted.state is State.settled and backend.control.swap_growth(noted.to_json(), expected=text):
        _log.error(
            "closed_log_lost_entries",
            **_named(count, known),
            ended_at=known.end,
            ends_at=found.end,
            why="a replica that lacked them took over, or the log was wiped; nodes that had applied them serve them",
        )


def _named(count: int, log: Closed) -> dict[str, str | int]:
    return {"log": log.stream_key, "partition": log.partition, "of": count}
