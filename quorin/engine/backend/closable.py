"""What growths and loads do with a log: close it, reopen it, begin it behind others, skip positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection


class ClosedBy(NamedTuple):
    """The number of the growth that closed a log, and the names of all logs that it closes, as far as they are known:
    earlier releases did not note them.
    """

    growth: int
    stream_keys: tuple[str, ...]


class ClosableLog(Protocol):
    """Part of :class:`quorin.engine.backend.protocols.Log`."""

    def close_for_appends(self, growth: int, stream_keys: Collection[str] = ()) -> int | None:
        """Refuse appends from now on, in one step, and return the last position; reads and trims go on.

        ``growth`` is the number of the growth that asks for it (:mod:`quorin.engine.repartition`). None, and nothing
        has changed, if that growth or a later one was ended by :meth:`reopen_for_appends`: a process that slept cannot
        close the log that others have reopened. Closing a closed log changes nothing. ``stream_keys`` are the names of
        all logs that the growth closes, for :meth:`closed_by`.
        """

    def closed_by(self) -> ClosedBy | None:
        """What closed the log; None if it takes appends."""

    def reopen_for_appends(self, growth: int) -> bool:
        """Allow appends again if that growth or an earlier one closed the log; neither can from now on."""

    def cut(self, after: int, through: int) -> int:
        """Remove the entries behind ``after``, up to ``through``, of a closed log, which ends at its newest entry then.
        Returns their number; 0, and nothing has changed, if the log takes appends.
        """

    def begin_behind(self, position: int) -> int:
        """Create the log if needed. One without entries begins behind ``position``, which counts as trimmed; one that
        has some goes on behind it. Returns its identity.
        """

    def skip_to(self, position: int) -> int:
        """Create the log if needed. Every entry that is appended from now on is behind ``position``. Returns the log's
        identity.
        """
