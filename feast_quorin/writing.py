"""Writes: Feast's rows as Arrow batches, column by column, and on to the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_quorin.frames import plain_row
from feast_quorin.keys import MAX_ID_BYTES, entity_ids, entity_ids_column
from feast_quorin.tables import TableReader
from feast_quorin.times import is_time, to_ns, to_ns_column
from quorin.errors import EntityIdTooLongError, InvalidRowError

if TYPE_CHECKING:
    import pandas as pd

    from feast_quorin.engine import Engine
    from feast_quorin.views import StoredView

CHUNK_ROWS = 8192
"""Rows converted at a time: bounds the memory of a large materialization, and paces its progress bar."""

TABLE_CHUNK_ROWS = 65_536
"""Rows of a table converted at a time: enough for Arrow's kernels to be at their speed."""

_BEFORE_ALL_TIMES = -(2**63) - 1

FeastRow = tuple[Any, dict[str, Any], Any, Any]
"""Entity key, feature values, event time, created time or None: what Feast hands to ``online_write_batch``."""


def write_rows(
    engine: Engine, view: StoredView, rows: Sequence[FeastRow], progress: Callable[[int], Any] | None
) -> None:
    """Log the rows and wait as the settings say. Of rows for one entity the newest event time wins; of equal ones the
    newer created time, then the later row; whatever batches they come in, if the view keeps created times, else in this
    batch. Features that a row leaves out stay as they are.

    A crash in between leaves a prefix of the chunks logged; writing the rows again completes it.

    :raises InvalidRowError: for a value or time that the view cannot hold; the chunks before it are logged.
    """
    position, tail = 0, None
    ordered = _oldest_created_first(rows) if view.schema.tie_breaker is None else rows
    for chunk in _chunks(ordered):
        if len(chunk) == 1 and view.features.keys() <= chunk[0][1].keys():
            position, tail = engine.write_row(view, *row_values(view, chunk[0]))
        else:
            position = _write_chunk(engine, view, chunk) or position
        if progress is not None:
            progress(len(chunk))
    if position:
        engine.settle(view, position, tail)


def _write_chunk(engine: Engine, view: StoredView, rows: Sequence[FeastRow]) -> int:
    position, features = 0, list(view.features)
    columns = _columns(features, rows)
    if columns is not None:
        return engine.write(view, _batch(view, rows, dict(zip(features, columns, strict=True))))
    for names, part in _by_features(view, rows):
        partial = len(names) < len(features)
        position = engine.write(view, rows_to_batch(view, part, names), partial=partial)
    return position


def row_values(view: StoredView, row: FeastRow) -> tuple[str, dict[str, Any], int]:
    """Entity id, values by field, and event time of one row that has all features: what :func:`rows_to_batch` makes of
    it, without the price of columns, which for a single row is most of the price.

    :raises InvalidRowError, EntityIdTooLongError: as there.
    """
    key, given, time, created = row
    (entity_id,) = entity_ids([key])
    if len(entity_id) * 4 > MAX_ID_BYTES:
        _check_length(view, len(entity_id.encode()))
    values = {}
    for feature, stored in view.features.items():
        try:
            values[stored.field] = stored.codec.to_python(given[feature])
        except InvalidRowError as error:
            raise InvalidRowError(f"feature {feature!r} of view {view.name!r}: {error}") from None
    if view.schema.tie_breaker is not None:
        values[view.schema.tie_breaker] = to_ns(created) if is_time(created) else None
    return entity_id, values, to_ns(time)


def write_table(
    engine: Engine, view: StoredView, table: Any, rows: pa.Table, progress: Callable[[int], Any] | None = None
) -> None:
    """Log an Arrow table of a Feast view (``table``) and wait as the settings say. Which row of an entity wins is as
    for :func:`write_rows`.

    A crash in between leaves a prefix of the chunks logged; writing the table again completes it.

    :raises ValueError: for a column that is not there. :raises InvalidRowError: for a value or time that the view
        cannot hold; the chunks before it are logged.
    """
    reader = TableReader(view, table)
    reader.check(rows)
    position = 0
    for start in range(0, rows.num_rows, TABLE_CHUNK_ROWS):
        batch = reader(rows.slice(start, TABLE_CHUNK_ROWS))
        position = engine.write(view, batch)
        if progress is not None:
            progress(batch.num_rows)
    if position:
        engine.settle(view, position)


def write_plain_row(
    engine: Engine, view: StoredView, table: Any, frame: pd.DataFrame, mapping: Mapping[str, str] | None
) -> bool:
    """Log the one row of a frame and wait as the settings say; False, and nothing is logged, if it is not plain."""
    row = plain_row(view, table, frame, mapping)
    if row is None:
        return False
    engine.settle(view, *engine.write_row(view, *row))
    return True


def rows_to_batch(view: StoredView, rows: Sequence[FeastRow], features: Sequence[str]) -> pa.RecordBatch:
    """Rows as the engine's record batch: ``entity_id``, ``event_time_ns``, the created time where the view keeps it,
    and the fields of the named features, which every row has.

    :raises InvalidRowError: for a value or time that does not fit. :raises EntityIdTooLongError: for a long key.
    """
    columns = _columns(features, rows)
    assert columns is not None  # noqa: S101 - every row has the features
    return _batch(view, rows, dict(zip(features, columns, strict=True)))


def _batch(view: StoredView, rows: Sequence[FeastRow], columns: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
    """The batch of rows whose values stand in columns already."""
    names = ["entity_id", "event_time_ns"]
    arrays = [_id_column(view, [row[0] for row in rows]), to_ns_column([row[2] for row in rows])]
    if view.schema.tie_breaker is not None:
        names.append(view.schema.tie_breaker)
        created = (row[3] for row in rows)
        arrays.append(pa.array([to_ns(time) if is_time(time) else None for time in created], pa.int64()))
    for feature, values in columns.items():
        stored = view.features[feature]
        names.append(stored.field)
        try:
            arrays.append(stored.codec.to_arrow(values))
        except InvalidRowError as error:
            raise InvalidRowError(f"feature {feature!r} of view {view.name!r}: {error}") from None
    return pa.RecordBatch.from_arrays(arrays, names)


def _id_column(view: StoredView, keys: Sequence[Any]) -> pa.Array:
    ids = entity_ids_column(keys)
    _check_length(view, pc.max(pc.binary_length(ids)).as_py() or 0)
    return ids


def _check_length(view: StoredView, longest: int) -> None:
    if longest > MAX_ID_BYTES:
        raise EntityIdTooLongError(f"view {view.name!r}: an entity key of {longest} bytes, at most {MAX_ID_BYTES} fit")


def _by_features(view: StoredView, rows: Sequence[FeastRow]) -> Iterator[tuple[list[str], Sequence[FeastRow]]]:
    """Runs of rows that have the same features of the view; rows that have none say nothing and are left out."""
    known = view.features.keys()
    for given, run in groupby(rows, key=lambda row: known & row[1].keys()):
        if given:
            yield [name for name in known if name in given], list(run)


def _columns(features: Sequence[str], rows: Sequence[FeastRow]) -> list[Sequence[Any]] | None:
    """The values of each feature; None if a row lacks one."""
    # A pass for each feature makes no object for each row, which the cyclic collector would go through again and again.
    given = [row[1] for row in rows]
    try:
        return [list(map(itemgetter(name), given)) for name in features]
    except KeyError:
        return None


def _oldest_created_first(rows: Sequence[FeastRow]) -> Sequence[FeastRow]:
    if not any(map(itemgetter(3), rows)):
        return rows
    return sorted(rows, key=lambda row: to_ns(row[3]) if is_time(row[3]) else _BEFORE_ALL_TIMES)


def _chunks(rows: Sequence[FeastRow]) -> Iterator[Sequence[FeastRow]]:
    return (rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS))
