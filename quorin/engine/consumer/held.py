"""Ends loads that are decided or whose coordinator died, and says how far a log may be trimmed while loads are open."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from quorin.engine.log.open_load import SILENT_SECONDS, open_loads
from quorin.engine.log.record import Kind, mark
from quorin.engine.log.token import Token
from quorin.engine.ops.presence import replica_name
from quorin.errors import ConnectionFailedError
from quorin.logging import get_logger
from quorin.schema import schema_from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from quorin.engine.backend import Backend, ControlPlane, Log
    from quorin.engine.log.open_load import OpenLoad
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
        append_marks(load, backend, [mark(Kind.abort, schema, load=load.begin)] * len(load.logs))
    return aborting.remove(backend.control)


def finish(load: OpenLoad, backend: Backend, schema: Schema | None = None) -> Token:
    """Write the commit of a load, which is decided, to all logs, and note it. Returns its positions.

    :raises ConnectionFailedError: if a log or the control plane cannot be reached; the next process goes on.
    """
    schema = schema or _stored(load, backend)
    if schema is None:  # It was dropped, and its rows with it.
        load.remove(backend.control)
        return Token()
    marks = [mark(Kind.commit, schema, load=load.begin, load_rows=rows) for rows in load.rows]
    tokens = append_marks(load, backend, marks)
    load.exchange(backend.control, state="committed", commits=tuple(int(token) for token in tokens))
    return Token.covering(*tokens)


def finish_decided(backend: Backend, stream_key: str) -> None:
    """Finish the loads that are decided, and whose coordinator gave no sign of life since.

    :raises ConnectionFailedError: if the control plane cannot be reached.
    """
    for load, silent_seconds in open_loads(backend.control).values():
        if load.state == "committing" and load.stream_key == stream_key and silent_seconds >= SILENT_SECONDS:
            with suppress(ConnectionFailedError):  # Of one log: the others may have theirs.
                finish(load, backend)
                _log.warning("load_finished", schema=load.schema_name, load=load.begin, coordinator=load.coordinator)


def append_marks(load: OpenLoad, backend: Backend, marks: Iterable[bytes]) -> list[Token]:
    """Append one record to the log of each partition. :raises ConnectionFailedError: if one cannot be reached."""
    count, name = len(load.logs), load.schema_name
    logs = [backend.log(load.stream_key, partition, of=count) for partition in range(count)]
    results = backend.append_together([(log, [(name, one)]) for log, one in zip(logs, marks, strict=True)])
    for result in results:
        if not isinstance(result, Token):
            raise result
    return [result for result in results if isinstance(result, Token)]


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
    if load.state == "committing" or not (is_lost or load.state == "aborting" or silent_seconds > node_timeout_seconds):
        return False
    with suppress(ConnectionFailedError):  # Of the log of another partition: it is held until that is back.
        if abort(load, backend):
            _log.warning("load_aborted", schema=load.schema_name, load=load.begin, coordinator=load.coordinator)
            return True
    return False


def _is_applied(load: OpenLoad, control: ControlPlane, here: Here, node_timeout_seconds: float) -> bool:
    """Whether this node, and all others that live, have applied a load's commit in all logs that they hold."""
    count = len(load.commits)
    names = {replica_name(load.schema_name, None if count == 1 else number): number for number in range(count)}
    applied = list(here(load.schema_name).items())
    for (_, name), replica in control.replicas().items():
        if name in names and replica.silent_seconds <= node_timeout_seconds:
            applied.append((names[name], replica.position))
    return all(position >= load.commits[number] for number, position in applied)
