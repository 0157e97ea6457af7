"""Writes: Feast's rows as Arrow batches, column by column, and on to the log."""

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
"""Rows converted at a time: bounds the memory of a large materialization, and paces its progress bar."""

TABLE_CHUNK_ROWS = 65_536
"""Rows of a table converted at a time: enough for Arrow's kernels to be at their speed."""

FeastRow = tuple[Any, dict[str, Any], Any, Any]
"""Entity key, feature values, event time, created time or None: what Feast hands to ``online_write_batch``."""


def write_rows(
    session: Session, view: StoredView, rows: Sequence[FeastRow], progress: Callable[[int], Any] | None
) -> None:
    """Log the rows and wait as the settings say. Of rows for one entity the newest event time wins; of equal ones the
    newer created time, if the view's source has a column of them; then the later row; whatever batches they come in.
    Features that a row leaves out stay as they are.

    A crash in between leaves a prefix of the chunks logged; writing the rows again completes it.

    :raises InvalidRowError: for a key, time or value that the view cannot hold; the text says view, row, join keys and
        feature. The chunks before it are logged.
    """
    position, tail = 0, None
    for first in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[first : first + CHUNK_ROWS]
        if len(chunk) == 1 and view.features.keys() <= chunk[0][1].keys():
            position, tail = log.write_row(session, view, *row_values(view, chunk[0], first))
        else:
            position = _write_chunk(session, view, chunk, first) or position
        if progress is not None:
            progress(len(chunk))
    if position:
        log.settle(session, view, position, tail)


def _write_chunk(session: Session, view: StoredView, rows: Sequence[FeastRow], first: int) -> int:
    position, features = 0, list(view.features)
    columns = _columns(features, rows)
    if columns is not None:
        return log.write(session, view, _batch(view, rows, dict(zip(features, columns, strict=True)), first))
    for names, start, part in _by_features(view, rows):
        partial = len(names) < len(features)
        position = log.write(session, view, rows_to_batch(view, part, names, first + start), partial=partial)
    return position


def row_values(view: StoredView, row: FeastRow, number: int = 0) -> tuple[str, dict[str, Any], int]:
    """Entity id, values by field, and event time of one row that has all features: what :func:`rows_to_batch` makes of
    it, without the price of columns, which for a single row is most of the price.

    :raises InvalidRowError, EntityIdTooLongError: as there.
    """
    key, given, time, created = row
    try:
        (entity_id,) = entity_ids([key])
        if len(entity_id) * 4 > MAX_ID_BYTES:
            check_length(len(entity_id.encode()))
        values = {stored.field: stored.codec.to_python(given[name]) for name, stored in view.features.items()}
        if view.schema.tie_breaker is not None:
            values[view.schema.tie_breaker] = to_ns(created) if is_time(created) else None
        return entity_id, values, to_ns(time)
    except REFUSALS:
        rows_to_batch(view, [row], list(view.features), number)  # Raises the same, and says of what.
        raise


def write_table(
    session: Session, view: StoredView, table: Any, rows: pa.Table, progress: Callable[[int], Any] | None = None
) -> None:
    """Log an Arrow table of a Feast view (``table``) and wait as the settings say. Which row of an entity wins is as
    for :func:`write_rows`.

    A crash in between leaves a prefix of the chunks logged; writing the table again completes it.

    :raises ValueError: for a column that is not there. :raises InvalidRowError: for a key, time or value that the view
        cannot hold; the text says view, row, join keys and feature. The chunks before it are logged.
    """
    reader = TableReader(view, table)
    reader.check(rows)
    position = 0
    for start in range(0, rows.num_rows, TABLE_CHUNK_ROWS):
        batch = reader(rows.slice(start, TABLE_CHUNK_ROWS), start)
        position = log.write(session, view, batch)
        if progress is not None:
            progress(batch.num_rows)
    if position:
        log.settle(session, view, position)


def write_plain_row(
    session: Session, view: StoredView, table: Any, frame: pd.DataFrame, mapping: Mapping[str, str] | None
) -> bool:
    """Log the one row of a frame and wait as the settings say; False, and nothing is logged, if it is not plain."""
    row = plain_row(view, table, frame, mapping)
    if row is None:
        return False
    log.settle(session, view, *log.write_row(session, view, *row))
    return True


def rows_to_batch(
    view: StoredView, rows: Sequence[FeastRow], features: Sequence[str], first: int = 0
) -> pa.RecordBatch:
    """Rows as the engine's record batch: ``entity_id``, ``event_time_ns``, the created time where the view keeps it,
    and the fields of the named features, which every row has. Errors count the rows from ``first``.

    :raises InvalidRowError: for a key, value or time that does not fit. :raises EntityIdTooLongError: for a long key.
    """
    columns = _columns(features, rows)
    assert columns is not None  # noqa: S101 - every row has the features
    return _batch(view, rows, dict(zip(features, columns, strict=True)), first)


def _batch(
    view: StoredView, rows: Sequence[FeastRow], columns: Mapping[str, Sequence[Any]], first: int
) -> pa.RecordBatch:
    """The batch of rows whose values stand in columns already."""
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
    """Runs of rows that have the same features of the view, and where they start; rows that have none say nothing and
    are left out.
    """
    known, start = view.features.keys(), 0
    for given, group in groupby(rows, key=lambda row: known & row[1].keys()):
        run = list(group)
        if given:
            yield [name for name in known if name in given], start, run
        start += len(run)


def _columns(features: Sequence[str], rows: Sequence[FeastRow]) -> list[Sequence[Any]] | None:
    """The values of each feature; None if a row lacks one."""
    # A pass for each feature makes no object for each row, which the cyclic collector would go through again and again.
    given = [row[1] for row in rows]
    try:
        return [list(map(itemgetter(name), given)) for name in features]
    except KeyError:
        return None
