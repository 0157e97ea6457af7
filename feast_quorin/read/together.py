"""Reads of several views as they are at one position of the log, where the settings or the request say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from feast_quorin.read.options import current
from quorin.assembly import at_one_position
from quorin.errors import QuorinError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from feast_quorin.views import StoredView
    from quorin.wal import Token

Result = TypeVar("Result")

_log = get_logger(__name__)


def together(session: Any, views: Sequence[StoredView], read: Callable[[int | Token | None], Result]) -> Result:
    """What ``read`` returns, which reads these views up to a log position, in a session of the store; of several
    partitions up to a token.

    :raises InconsistentReadError: if the views could not be read at one position in time.
    """
    asked_ms = current().consistent_ms
    timeout_ms = session.settings.consistent_timeout_ms if asked_ms is None else asked_ms
    if timeout_ms is None:
        return read(None)
    _, result = at_one_position(
        lambda: [session.prepare(view) for view in views],
        read,
        timeout_ms=timeout_ms,
        reach=lambda index, position: _reach(session, views[index], position),
        reached=session.reached,
    )
    return result


def _reach(session: Any, view: StoredView, position: int | Token) -> int | Token:
    """Apply what the log has for a view after a position, where that is the task of the processes that read or write:
    each then applies one view, and its segment's position is that of the view's last entry.
    """
    if session.follower is not None or session.settings.consumer == "external":
        return 0
    try:
        reached: int | Token = session.consumer_of(view).reach(position)
    except QuorinError as error:
        _log.warning("read_not_caught_up", view=view.name, error=str(error))
        return 0
    return reached
