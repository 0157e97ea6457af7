"""Reads of many ids on a node that holds some partitions: what it holds from memory, the rest from other nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from quorin.engine.reads.joined import LEADING, JoinedColumns
from quorin.engine.reads.readers import ColumnReader
from quorin.engine.routing.asking import finish
from quorin.engine.routing.router import HereOnly, RowsRequest, Waiting
from quorin.engine.rows.intake import id_array
from quorin.engine.rows.partitions import partitions_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

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

    def in_partitions(self, partitions: Collection[int]) -> Int64s:
        """The indexes of those in some partitions."""
        return self.rows[np.isin(self.partitions, list(partitions))]


def away_of(segment: Segment, entity_ids: Any, not_held: Mask) -> Away | None:
    """The ids of a batch that a read has said it does not hold; None if there are none."""
    rows = np.flatnonzero(not_held)
    if not len(rows):
        return None
    ids, count = id_array(entity_ids).take(pa.array(rows)), segment.partitioning.count
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
        ``at_most``, and for a segment that is pinned, no other is asked, whose rows are of another moment.

        :raises NotHeldError: for an id whose partition no node answers for; :class:`HoldersUnavailableError` if some
            that hold it were asked. :raises NotYetAppliedError, TokenError: if another node does not show the token.
        """
        return finish(self.asking(entity_ids, now_ns=now_ns, at_most=at_most, waiting=waiting))

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
        not_held, own.not_held = own.not_held, None
        away = None if not_held is None else away_of(self._segment, entity_ids, not_held)
        if away is None:
            return own
        names = [field.name for field in own.fields]
        about = {"schema": own.view.schema.__name__, "fields": names, "positions": True}
        name = own.view.schema.__name__
        is_of_here = at_most is not None or self._segment.is_pinned
        router = HereOnly(self._router) if is_of_here else self._router
        request = RowsRequest(
            READ_PATH, about, name, waiting, lambda batch: _unlike(batch, names), away.partition_count
        )
        fetched = yield from router.fetch(request, away.ids, away.partitions)
        if fetched.lacking and self._missing_partitions == "error":
            router.raise_lacking(request, fetched.lacking)
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
