"""Ends loads that are decided or whose coordinator died, and says how far a log may be trimmed while loads are open."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from quorin.engine.log.open_load import SILENT_SECONDS, open_loads
from quorin.engine.log.record import Kind, mark
from quorin.engine.log.token import Token
from quorin.engine.ops.presence import replica_name
from quorin.errors import ConnectionFailedError, LogClosedError
from quorin.logging import get_logger
from quorin.schema import schema_from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from quorin.engine.backend import Backend, ControlPlane, Log
    from quorin.engine.log.open_load import OpenLoad
    from quorin.errors import QuorinError
    from quorin.schema import Schema

    Here = Callable[[str], Mapping[int, int]]
    """The positions that this node has applied of a schema, by partition."""

_log = get_logger(__name__)


def held_by_loads(
    through: int, log: Log, backend: Backend, here: Here, node_timeout_seconds: float, *, of: int = 1
) -> int:
    """The position up to which a log, that of one partition ``of`` so many, may be trimmed, at most ``through``.

    It is never past the beginning of a load that may still be committed. A load is aborted once its coordinator was
    silent for ``node_timeout_seconds``; one that is committed is forgotten once all live nodes have applied the commit.
    """
    for load, silent_seconds in open_loads(backend.control).values():
        if load.stream_key != log.stream_key or len(load.logs) != of:
            continue
        is_lost = load.logs[log.partition] != log.identity()
        if not _is_over(load, silent_seconds, backend, here, node_timeout_seconds, is_lost=is_lost):
            through = min(through, load.held)
    return through


def abort(load: OpenLoad, backend: Backend) -> bool:
    """End a load without a commit; False if that is decided, or another process has changed it meanwhile.

    The entries are written before the record goes, which lets the logs be trimmed. A process that dies in between
    leaves the rest to the next one.

    :raises ConnectionFailedError: if a log or the control plane cannot be reached.
    """
    if not load.can_be_aborted:
        return False
    aborting = load if load.state == "aborting" else load.exchange(backend.control, state="aborting")
    if aborting is None:
        return False
    schema = _stored(load, backend)
    if schema is not None:
        ends, failures = _append_ends(aborting, backend, [mark(Kind.abort, schema, load=load.begin)] * len(load.logs))
        for failure in failures:
            if not isinstance(failure, LogClosedError):  # A closed log gets no commit any more.
                aborting.exchange(backend.control, ends=ends)
                raise failure
    return aborting.remove(backend.control)


def finish(load: OpenLoad, backend: Backend, schema: Schema | None = None) -> Token:
    """Write the commit of a load, which is decided, to all logs, and note it. Returns its positions.

    :raises ConnectionFailedError: if a log or the control plane cannot be reached; the next process goes on.
    :raises LogClosedError: if the deployment has grown all the same, as the control plane had lost one of the two; the
        load is over.
    """
    schema = schema or _stored(load, backend)
    if schema is None:  # It was dropped, and its rows with it.
        load.remove(backend.control)
        return Token()
    marks = [mark(Kind.commit, schema, load=load.begin, load_rows=rows) for rows in load.rows]
    ends, failures = _append_ends(load, backend, marks)
    if any(isinstance(failure, LogClosedError) for failure in failures):
        load.remove(backend.control)
    else:
        load.exchange(backend.control, state="committing" if failures else "committed", ends=ends)
    for failure in failures:
        raise failure
    return Token(*zip(load.logs, ends, strict=True))


def finish_decided(backend: Backend, stream_key: str) -> None:
    """Finish the loads that are decided, and whose record nobody has changed for a while: their coordinator died, or a
    log could not be reached.

    :raises ConnectionFailedError: if the control plane cannot be reached.
    """
    for load, silent_seconds in open_loads(backend.control).values():
        if load.state == "committing" and load.stream_key == stream_key and silent_seconds >= SILENT_SECONDS:
            with suppress(ConnectionFailedError, LogClosedError):  # Of one log: the others may have theirs.
                finish(load, backend)
                _log.warning("load_finished", schema=load.schema_name, load=load.begin, coordinator=load.coordinator)


def append_marks(load: OpenLoad, backend: Backend, marks: Mapping[int, bytes]) -> dict[int, Token | QuorinError]:
    """Append a record to the log of each of these partitions. Returns its position, or why it was not written."""
    name, log = load.schema_name, partial(backend.log, load.stream_key, of=len(load.logs))
    results = backend.append_together([(log(partition), [(name, one)]) for partition, one in marks.items()])
    return dict(zip(marks, results, strict=True))


def _append_ends(load: OpenLoad, backend: Backend, marks: Sequence[bytes]) -> tuple[tuple[int, ...], list[QuorinError]]:
    """Append the entries that end a load to the logs that are not known to have theirs. Returns the positions of all, 0
    where one is missing, and why they are.
    """
    known = dict(enumerate(load.ends or (0,) * len(load.logs)))
    results = append_marks(load, backend, {number: marks[number] for number, end in known.items() if not end})
    known |= {number: int(result) for number, result in results.items() if isinstance(result, Token)}
    return tuple(known.values()), [result for result in results.values() if not isinstance(result, Token)]


def _stored(load: OpenLoad, backend: Backend) -> Schema | None:
    text = backend.control.schemas().get(load.schema_name)
    return None if text is None else schema_from_json(text)


def _is_over(
    load: OpenLoad, silent_seconds: float, backend: Backend, here: Here, node_timeout_seconds: float, *, is_lost: bool
) -> bool:
    """Whether no node needs the load's rows any more; its record is removed then."""
    control = backend.control
    if load.state == "committed":
        return _is_applied(load, control, here, node_timeout_seconds) and load.remove(control)
    if load.state == "aborting":
        is_due = silent_seconds >= SILENT_SECONDS  # Another process may be at it, or a log could not be reached.
    else:
        is_due = load.can_be_aborted and (is_lost or silent_seconds > node_timeout_seconds)
    if not is_due:
        return False
    with suppress(ConnectionFailedError):  # Of the log of another partition: it is held until that is back.
        if abort(load, backend):
            _log.warning("load_aborted", schema=load.schema_name, load=load.begin, coordinator=load.coordinator)
            return True
    return False


def _is_applied(load: OpenLoad, control: ControlPlane, here: Here, node_timeout_seconds: float) -> bool:
    """Whether this node, and all others that live, have applied a load's commit in all logs that they hold."""
    count = len(load.ends)
    names = {replica_name(load.schema_name, None if count == 1 else number): number for number in range(count)}
    applied = list(here(load.schema_name).items())
    for (_, name), replica in control.replicas().items():
        if name in names and replica.silent_seconds <= node_timeout_seconds:
            applied.append((names[name], replica.position))
    return all(position >= load.ends[number] for number, position in applied)
