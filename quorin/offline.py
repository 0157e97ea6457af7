"""The history: every row that went through the log, in Parquet files, for training reads and cold starts.

See ``docs/history.md`` for the layout and the promises. Importing this loads pyarrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.history.store import ParquetDatasetStore
from quorin.errors import CorruptHistoryError, EmptyDatasetError, HistoryUnavailableError, IncompleteHistoryError

if TYPE_CHECKING:
    import os

    import pyarrow as pa

    from quorin.schema import Schema

__all__ = [
    "CorruptHistoryError",
    "EmptyDatasetError",
    "HistoryUnavailableError",
    "IncompleteHistoryError",
    "ParquetDatasetStore",
    "read_at",
]


def read_at(
    history: ParquetDatasetStore | str | os.PathLike[str],
    schema: Schema,
    ids: Any,
    *,
    position: int | None = None,
    time_ns: int | None = None,
    connection: Any = None,
    namespace: str = DEFAULT_NAMESPACE,
) -> pa.Table:
    """What reads returned when a log position was applied, or at a time (nanoseconds since the epoch).

    Rows behind the position do not count, late rows included. The others count by the rule by which they were applied:
    the newest event time wins, then the larger tie-breaker, then the later row; a partial row takes over what it does
    not set from the row that was in force when it arrived.

    A time means all rows that the log had accepted by then, by its own clock, to the millisecond: positions are times.
    What a node had applied may be some milliseconds behind that; a position is exact.

    Returns one row for each id, in their order: ``entity_id``, ``found``, ``event_time_ns``, ``position`` (of the
    entry that wrote the row) and the fields in their exact types; null where not found. Fields match by name: what the
    schema had not then, or had lost since the row was written, is null.

    ``connection`` and ``namespace`` are those of the log, for rows that are not in the history yet.

    :raises IncompleteHistoryError: if history and log lack positions up to then; it has them in ``missing``.
    :raises InvalidRowError: unless one of ``position`` and ``time_ns`` is given. :raises EntityIdError: for an id that
        is null, empty or no text.
    """
    store = history if isinstance(history, ParquetDatasetStore) else ParquetDatasetStore(history)
    options = {"connection": connection, "namespace": namespace}
    return store.read_at(schema, ids, position=position, time_ns=time_ns, **options)
