"""Reads of many ids on a node that holds some partitions: what it holds from memory, the rest from other nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quorin.engine.reads.joined import LEADING, JoinedColumns
from quorin.engine.reads.not_held import not_held_of
from quorin.engine.reads.readers import ColumnReader
from quorin.engine.routing.asking import done
from quorin.engine.routing.router import HereOnly, Question, Waiting
from quorin.engine.rows.intake import id_array
from quorin.engine.rows.partitions import partitions_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from quorin.engine.arrays import Bytes, Int64s, Mask
    from quorin.engine.log.token import Token
    from quorin.engine.reads.ages import MaxAge
    from quorin.engine.reads.columns import Columns
    from quorin.engine.routing.asking import Asking
    from quorin.engine.routing.router import Fetching, Missing
    from quorin.shm import Segment

_NO_WAITING = Waiting()
READ_PATH, ASSEMBLE_PATH = "/v1/read", "/v1/assemble"


class Away(NamedTuple):
    """The ids of a batch that are not held: their indexes there, the ids, and their partitions of so many."""

    rows: Int64s
    ids: pa.Array
    partitions: Bytes
    partition_count: int

    def in_partitions(self, partitions: Any) -> Int64s:
        """The indexes of those in some partitions."""
        return self.rows[np.isin(self.partitions, list(partitions))]


def away_from(segment: Segment, entity_ids: Any, found: Mask) -> Away | None:
    """The ids, of those that were not found in a segment, that it does not hold; None if there are none."""
    view = segment.current_view()
    not_held = not_held_of(view, entity_ids, found)
    if not_held is None:
        return None
    rows = np.flatnonzero(not_held)
    ids, count = id_array(entity_ids).take(rows), view.partitioning.count
    return Away(rows, ids, partitions_of(ids, count), count)


class RoutedReader:
    """A :class:`quorin.assembly.ColumnReader` that is completed by other nodes, which ``router`` asks.

    With ``missing_partitions="mask"`` ids that no node answers for are not found, and
    :attr:`~quorin.engine.reads.columns.Columns.not_held` says which; without any it is None.
    """

    def __init__(
        self,
        router: Fetching,
        segment: Segment,
        fields: Sequence[str] | None = None,
        *,
        positions: bool = False,
        max_age: MaxAge | None = None,
        missing_partitions: Missing = "error",
    ) -> None:
        self._router = router
        self._segment = segment
        self._reader = ColumnReader(segment, fields, positions=positions, max_age=max_age, missing_partitions="mask")
        self._missing_partitions = missing_partitions

    def __call__(
        self,
        entity_ids: Any,
        *,
        now_ns: int | None = None,
        at_most: int | Token | None = None,
        waiting: Waiting = _NO_WAITING,
    ) -> Columns:
        """The rows of entities, in the order of the ids. ``waiting`` is what other nodes are to wait for. With
        ``at_most`` no other is asked, whose rows are of another moment.

        :raises NotHeldError: for an id whose partition no node answers for; :class:`HoldersUnavailableError` if some
            that hold it were asked. :raises NotYetAppliedError, TokenError: if another node does not show the token.
        """
        return done(self.asking(entity_ids, now_ns=now_ns, at_most=at_most, waiting=waiting))

    def asking(
        self,
        entity_ids: Any,
        *,
        now_ns: int | None = None,
        at_most: int | Token | None = None,
        waiting: Waiting = _NO_WAITING,
    ) -> Asking[Columns]:
        """The same, to be done by a thread or an event loop."""
        own = self._reader(entity_ids, now_ns=now_ns, at_most=at_most)
        own.not_held = None
        away = away_from(self._segment, entity_ids, own.found)
        if away is None:
            return own
        names = [field.name for field in own.fields]
        about = {"schema": own.view.schema.__name__, "fields": names, "positions": True}
        name = own.view.schema.__name__
        router = self._router if at_most is None else HereOnly(self._router)
        question = Question(READ_PATH, about, name, waiting, lambda batch: _unlike(batch, names), away.partition_count)
        fetched = yield from router.fetch(question, away.ids, away.partitions)
        if fetched.lacking and self._missing_partitions == "error":
            router.raise_lacking(question, fetched.lacking)
        parts = [(away.rows[rows], batch) for rows, batch in fetched.parts]
        joined = JoinedColumns(own, entity_ids, parts)
        if fetched.lacking:
            joined.not_held = np.zeros(len(own.found), np.bool_)
            joined.not_held[away.in_partitions(fetched.lacking)] = True
        return joined


def _unlike(batch: pa.RecordBatch, fields: list[str]) -> str | None:
    """Why a batch is no answer, as that of a node in the middle of an upgrade."""
    names = [*LEADING, *fields]
    return None if batch.schema.names == names else f"expected the columns {names}, got {batch.schema.names}"
