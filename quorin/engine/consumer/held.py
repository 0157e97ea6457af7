"""How far a log may be trimmed while loads are open: never past the beginning of one that may still be committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.log.open_load import open_loads
from quorin.engine.log.record import Kind, mark
from quorin.logging import get_logger
from quorin.schema import schema_from_json

if TYPE_CHECKING:
    from quorin.engine.backend import ControlPlane, Log
    from quorin.engine.log.open_load import OpenLoad

_log = get_logger(__name__)


def held_by_loads(through: int, log: Log, control: ControlPlane, node_timeout_seconds: float) -> int:
    """The position up to which a log may be trimmed, at most ``through``, which this node has applied.

    A load is aborted once its coordinator was silent for ``node_timeout_seconds``; one that is committed is forgotten
    once all live nodes have applied the commit.
    """
    for load, silent_seconds in open_loads(control).values():
        if load.stream_key == log.stream_key and not _is_over(
            load, silent_seconds, through, log, control, node_timeout_seconds
        ):
            through = min(through, load.held)
    return through


def abort(load: OpenLoad, log: Log, control: ControlPlane) -> bool:
    """End a load without a commit; False if its coordinator, or another process, has changed it meanwhile.

    The entry in the log decides: a commit that comes after it counts nowhere. So it is written before the record goes,
    which lets the log be trimmed. A process that dies in between leaves the rest to the next one.
    """
    aborting = load if load.state == "aborting" else load.exchange(control, state="aborting")
    if aborting is None:
        return False
    text = control.schemas().get(load.schema_name)
    if text is not None:
        log.append([(load.schema_name, mark(Kind.abort, schema_from_json(text), load=load.begin))])
    return aborting.remove(control)


def _is_over(
    load: OpenLoad, silent_seconds: float, through: int, log: Log, control: ControlPlane, node_timeout_seconds: float
) -> bool:
    """Whether no node needs the load's rows any more; its record is removed then."""
    if load.log_identity != log.identity():
        return control.swap_load(load.schema_name, None, expected=load.to_json())
    if load.state == "committed":
        is_applied = through >= load.commit and not _late_replicas(load, control, node_timeout_seconds)
        return is_applied and load.remove(control)
    if load.state != "aborting" and silent_seconds <= node_timeout_seconds:
        return False
    is_aborted = abort(load, log, control)
    if is_aborted:
        _log.warning("load_aborted", schema=load.schema_name, load=load.begin, coordinator=load.coordinator)
    return is_aborted


def _late_replicas(load: OpenLoad, control: ControlPlane, node_timeout_seconds: float) -> bool:
    """Whether a live node has not applied a load's commit."""
    return any(
        name == load.schema_name and applied.silent_seconds <= node_timeout_seconds and applied.position < load.commit
        for (_, name), applied in control.replicas().items()
    )
