"""Writes: convert Feast's rows to Arrow batches, column by column, and append them to the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_quorin.convert.entity_ids import MAX_ID_BYTES, check_length, entity_ids, entity_ids_column, key_values
from feast_quorin.convert.locating import REFUSALS, Rows
from feast_quorin.convert.times import is_time, to_ns, to_ns_column, to_ns_or_null_column
from feast_quorin.write import log
from feast_quorin.write.one_row_frame import plain_row
from feast_quorin.write.tables import TableReader

if TYPE_CHECKING:
    import pandas as pd

    from feast_quorin.session import Session
    from feast_quorin.views import StoredView

CHUNK_ROWS = 8192
"""Rows to convert at once: bounds the memory of a large materialization, and paces its progress bar."""

TABLE_CHUNK_ROWS = 65_536
"""Rows of a table to convert at once: enough for Arrow's kernels to run at full speed."""

FeastRow = tuple[Any, dict[str, Any], Any, Any]
"""Entity key, feature values, event time, and created time or None, as Feast passes to ``online_write_batch``."""


def write_rows(
    session: Session, view: StoredView, rows: Sequence[FeastRow], progress: Callable[[int], Any] | None
) -> None:
    """Append rows to the log and wait as the settings say.

    Of rows for one entity, the newest event time wins; then the newest created time, if the view's source has such a
    column; then the last row. This holds across batches. Features that a row leaves out stay as they are.

    A crash leaves a prefix of the chunks in the log. Writing the rows again completes them.

    :raises InvalidRowError: for a key, time or value that the view cannot hold; the text names view, row, join keys and
        feature. The chunks before it are in the log.
    """
    position, tail = 0, None
    for first, chunk in chunks(rows):
        if len(chunk) == 1 and view.features.keys() <= chunk[0][1].keys():
            position, tail = log.write_row(session, view, *row_values(view, chunk[0], first))
        else:
            for batch, partial in chunk_batches(view, chunk, first):
                position = log.write(session, view, batch, partial=partial)
        if progress is not None:
            progress(len(chunk))
    if position:
        log.settle(session, view, position, tail)


def chunks(rows: Sequence[FeastRow]) -> Iterator[tuple[int, Sequence[FeastRow]]]:
    """The index of each chunk's first row, and the chunk."""
    for first in range(0, len(rows), CHUNK_ROWS):
        yield first, rows[first : first + CHUNK_ROWS]


def chunk_batches(view: StoredView, chunk: Sequence[FeastRow], first: int) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """A chunk's rows as batches of :func:`rows_to_batch`, and whether each is partial: lacks features of the view."""
    features = list(view.features)
    columns = _columns(features, chunk)
    if columns is not None:
        yield _batch(view, chunk, dict(zip(features, columns, strict=True)), first), False
        return
    for names, start, part in _by_features(view, chunk):
        yield rows_to_batch(view, part, names, first + start), len(names) < len(features)


def row_values(view: StoredView, row: FeastRow, number: int = 0) -> tuple[str, dict[str, Any], int]:
    """Entity id, values by field, and event time of one row that has all features.

    Equals :func:`rows_to_batch`, without Arrow columns, which take most of the time of a single row.

    :raises InvalidRowError, EntityIdTooLongError: as :func:`rows_to_batch`.
    """
    key, features, time, created = row
    try:
        (entity_id,) = entity_ids([key])
        if len(entity_id) * 4 > MAX_ID_BYTES:
            check_length(len(entity_id.encode()))
        values = {stored.field: stored.codec.to_python(features[name]) for name, stored in view.features.items()}
        if view.schema.tie_breaker is not None:
            values[view.schema.tie_breaker] = to_ns(created) if is_time(created) else None
        return entity_id, values, to_ns(time)
    except REFUSALS:
        rows_to_batch(view, [row], list(view.features), number)  # Raises the same error, with view, row and feature.
        raise


def write_table(
    session: Session, view: StoredView, table: Any, rows: pa.Table, progress: Callable[[int], Any] | None = None
) -> None:
    """Append ``rows``, an Arrow table for the Feast view ``table``, and wait as the settings say. The same row of an
    entity wins as in :func:`write_rows`.

    A crash leaves a prefix of the chunks in the log. Writing the table again completes it.

    :raises ValueError: for a missing column. :raises InvalidRowError: for a key, time or value that the view cannot
        hold; the text names view, row, join keys and feature. The chunks before it are in the log.
    """
    position = 0
    for batch in table_batches(view, table, rows):
        position = log.write(session, view, batch)
        if progress is not None:
            progress(batch.num_rows)
    if position:
        log.settle(session, view, position)


def replace_table(
    session: Session,
    view: StoredView,
    table: Any,
    rows: pa.Table,
    progress: Callable[[int], Any] | None = None,
    reference: pa.Table | None = None,
) -> None:
    """Replace all rows of the view by those of a table, and wait as the settings say. Raises as :func:`write_table`.
    Its checks compare with the rows of a ``reference``, or else with those that are served.

    Until the flip the old rows are served, also after a crash or an error.
    """
    log.settle(session, view, log.replace(session, view, table_batches(view, table, rows), progress, reference))


def table_batches(view: StoredView, table: Any, rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """An Arrow table's rows as batches; raises as :func:`write_table`."""
    reader = TableReader(view, table)
    reader.check(rows)
    for start in range(0, rows.num_rows, TABLE_CHUNK_ROWS):
        yield reader(rows.slice(start, TABLE_CHUNK_ROWS), start)


def write_plain_row(
    session: Session, view: StoredView, table: Any, frame: pd.DataFrame, mapping: Mapping[str, str] | None
) -> bool:
    """Append the only row of a frame and wait as the settings say. Returns False, and appends nothing, if the frame is
    not one that :func:`feast_quorin.write.one_row_frame.plain_row` takes.
    """
    row = plain_row(view, table, frame, mapping)
    if row is None:
        return False
    log.settle(session, view, *log.write_row(session, view, *row))
    return True


def rows_to_batch(
    view: StoredView, rows: Sequence[FeastRow], features: Sequence[str], first: int = 0
) -> pa.RecordBatch:
    """Rows as the engine's record batch: ``entity_id``, ``event_time_ns``, the created time if the view stores it, and
    the fields of ``features``, which every row must have. Errors number the rows from ``first``.

    :raises InvalidRowError: for a key, value or time that does not fit. :raises EntityIdTooLongError: for a long key.
    """
    columns = _columns(features, rows)
    assert columns is not None  # noqa: S101 - every row has the features
    return _batch(view, rows, dict(zip(features, columns, strict=True)), first)


def _batch(
    view: StoredView, rows: Sequence[FeastRow], columns: Mapping[str, Sequence[Any]], first: int
) -> pa.RecordBatch:
    """The batch of rows whose values are in columns already."""
    located = Rows(view.name, lambda row: key_values(rows[row][0]), lambda row: first + row)
    names = ["entity_id", "event_time_ns"]
    arrays = [
        located.convert("", [row[0] for row in rows], _id_column),
        located.convert("event time", [row[2] for row in rows], to_ns_column),
    ]
    if view.schema.tie_breaker is not None:
        names.append(view.schema.tie_breaker)
        arrays.append(located.convert("created time", [row[3] for row in rows], to_ns_or_null_column))
    for feature, values in columns.items():
        stored = view.features[feature]
        names.append(stored.field)
        arrays.append(located.convert(f"feature {feature!r}", values, stored.codec.to_arrow))
    return pa.RecordBatch.from_arrays(arrays, names)


def _id_column(keys: Sequence[Any]) -> pa.Array:
    ids = entity_ids_column(keys)
    check_length(pc.max(pc.binary_length(ids)).as_py() or 0)
    return ids


def _by_features(view: StoredView, rows: Sequence[FeastRow]) -> Iterator[tuple[list[str], int, Sequence[FeastRow]]]:
    """Runs of consecutive rows with the same features of the view: the features, the first row's index, the rows. Rows
    without any feature are left out.
    """
    features, start = view.features.keys(), 0
    for present, group in groupby(rows, key=lambda row: features & row[1].keys()):
        run = list(group)
        if present:
            yield [name for name in features if name in present], start, run
        start += len(run)


def _columns(features: Sequence[str], rows: Sequence[FeastRow]) -> list[Sequence[Any]] | None:
    """The values of each feature; None if a row lacks one."""
    # One pass a feature creates no object a row, which the garbage collector would scan again and again.
    values = [row[1] for row in rows]
    try:
        return [list(map(itemgetter(name), values)) for name in features]
    except KeyError:
        return None
