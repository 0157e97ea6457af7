"""The history: every row that went through the log, in Parquet files, for training reads and cold starts.

See ``docs/history.md`` for the layout and the promises. Importing this loads pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.history.last_values import last_values
from quorin.engine.history.store import ParquetDatasetStore
from quorin.engine.served.description import ServedView
from quorin.engine.served.log import ServedLog, ServedRows, check_request_id
from quorin.engine.skew.compare import compare, skew
from quorin.engine.skew.page import skew_page
from quorin.engine.skew.report import FieldSkew, SkewExample, SkewReport
from quorin.engine.skew.sides import SideRows, Sides
from quorin.errors import (
    CorruptHistoryError,
    EmptyDatasetError,
    HistoryUnavailableError,
    IncompleteHistoryError,
    ServedLogUnavailableError,
)

if TYPE_CHECKING:
    import os

    import pyarrow as pa

    from quorin.engine.log.token import Token
    from quorin.schema import Schema

__all__ = [
    "CorruptHistoryError",
    "EmptyDatasetError",
    "FieldSkew",
    "HistoryUnavailableError",
    "IncompleteHistoryError",
    "ParquetDatasetStore",
    "ServedLog",
    "ServedLogUnavailableError",
    "ServedRows",
    "ServedView",
    "SideRows",
    "Sides",
    "SkewExample",
    "SkewReport",
    "check_request_id",
    "compare",
    "last_values",
    "read_at",
    "read_served",
    "skew",
    "skew_page",
]


def read_at(
    history: ParquetDatasetStore | str | os.PathLike[str],
    schema: Schema,
    ids: Any,
    *,
    position: int | Token | str | None = None,
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

    With several partitions the position is a token, or its text: that of an answer, of what a node has applied, or of a
    write, if it is of all partitions that ``ids`` are in. Rows of each partition count up to its part. ``connection``
    is needed then, as the logs know which of them a token names. A time needs none, by the clock of each log.

    Returns one row for each id, in their order: ``entity_id``, ``found``, ``event_time_ns``, ``log_position`` (of
    the entry that wrote the row) and the fields in their exact types; null where not found. Fields match by name: what
    the schema had not then, or had lost since the row was written, is null.

    ``connection`` and ``namespace`` are those of the log, for rows that are not in the history yet.

    :raises IncompleteHistoryError: if history and log lack positions up to then; it has them in ``missing``.
    :raises InvalidRowError: unless one of ``position`` and ``time_ns`` is given. :raises EntityIdError: for an id that
        is null, empty or no text. :raises TokenError: for a token of other logs, or without a part for one that is
        needed. :raises PartitionedError: with several partitions, for a position that is no token.
    """
    store = history if isinstance(history, ParquetDatasetStore) else ParquetDatasetStore(history)
    options = {"connection": connection, "namespace": namespace}
    return store.read_at(schema, ids, position=position, time_ns=time_ns, **options)


def read_served(
    url: str | os.PathLike[str],
    history: ParquetDatasetStore | str | os.PathLike[str],
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
    request_ids: Collection[str] | None = None,
    of_views: Callable[[tuple[ServedView, ...]], bool] | None = None,
    labels: Any = None,
    connection: Any = None,
    namespace: str = DEFAULT_NAMESPACE,
    with_statuses: bool = False,
    progress: Callable[[int, int], Any] | None = None,
) -> pa.Table:
    """What was served, value for value: the requests of a served log (see ``docs/served.md``), from their positions and
    the history. All of it, or requests from ``since_ns`` to before ``until_ns``, or with certain ids, or those whose
    views ``of_views`` accepts (none where they are not known).

    One row for each row of a request, in the order of the files: ``request`` (a number), ``request_id``, ``time``,
    ``row``, ``entity_id`` (``entity_id:<view>`` if views have different keys), ``log_position:<view>``, the features by
    their names in the answer in the types of their fields, request data and computed features, and ``known``. Where it
    is false, the history lacks the row of a view, whose features are then null; ``connection`` is that of the log,
    which may have it. Features of other requests than the row's are null. ``with_statuses`` adds
    ``event_time_ns:<view>``, and for each feature ``status:<feature>``: 1 served, 0 no row, 2 null because of its age.

    ``labels`` makes a training set of it: a table with ``request_id`` (and ``row``, if requests have several), or with
    ``entity_id`` and ``time`` (nanoseconds or timestamps), which takes the last row served at or before. Its other
    columns are added; labels of which nothing was served are left out.

    ``progress`` is called with the number of files that were read, and of all.

    :raises ServedLogUnavailableError, HistoryUnavailableError: if files cannot be read.
    :raises CorruptHistoryError: for damaged ones. :raises InvalidRowError: for labels without these columns, or with a
        column that is served too.
    """
    from quorin.engine.served.files import ServedFiles
    from quorin.engine.served.labels import with_labels
    from quorin.engine.served.replay import Choice, read_log, replayed

    store = history if isinstance(history, ParquetDatasetStore) else ParquetDatasetStore(history)
    choice = Choice(since_ns, until_ns, request_ids, of_views, with_statuses)
    rows = read_log(ServedFiles(url), choice, progress)
    table = replayed(rows, choice, store, connection, namespace)
    return table if labels is None else with_labels(table, labels)
