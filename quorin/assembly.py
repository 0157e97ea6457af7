"""Compiled reads: feature vectors and typed columns straight from shared memory.

The same functions and results as :mod:`quorin.serving`, bit for bit, and fast. A read finds the row, copies it and
checks that no writer touched it meanwhile; it takes no lock, and waits for nobody. When a segment has grown or was
replaced, the read that notices attaches the successor and goes on there.
"""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.models import fitted
from quorin.engine.models import reader as models
from quorin.engine.models.layout import MatrixLayout, MatrixPart, matrix_layout
from quorin.engine.models.reader import ModelReader
from quorin.engine.models.stored import layout_from_json as load_layout
from quorin.engine.models.stored import layout_to_json as dump_layout
from quorin.engine.reads.ages import MaxAge, duration_ns
from quorin.engine.reads.columns import Columns
from quorin.engine.reads.last import LastValues, read_last, read_last_batch
from quorin.engine.reads.readers import ColumnReader, RowReader
from quorin.engine.reads.row import OneRow, Rows, RowsLayout
from quorin.engine.reads.scan import Changes, changes_view, scan_view
from quorin.engine.reads.together import at_one_position, read_together
from quorin.engine.reads.vectors import Reader, assemble, assemble_batch
from quorin.engine.reads.waiting import DEFAULT_TIMEOUT_MS, has_applied, wait_for
from quorin.engine.routing.asking import (
    Asking,
    UnfinishedError,
    WouldWaitError,
    all_of,
    at_once,
    finish,
    finish_async,
)
from quorin.engine.routing.reads import RoutedReader
from quorin.engine.routing.router import Elsewhere, Fetching, Waiting
from quorin.engine.rows.intake import number_ids
from quorin.errors import ChangesForgottenError, EntityNotFoundError, NotHeldError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from quorin.engine.reads.not_held import MissingPartitions
    from quorin.shm import Segment
    from quorin.wal import Token

__all__ = [
    "Asking",
    "Changes",
    "ChangesForgottenError",
    "ColumnReader",
    "Columns",
    "Elsewhere",
    "EntityNotFoundError",
    "Fetching",
    "LastValues",
    "MatrixLayout",
    "MatrixPart",
    "MaxAge",
    "ModelReader",
    "NotHeldError",
    "OneRow",
    "Reader",
    "RoutedReader",
    "RowReader",
    "Rows",
    "RowsLayout",
    "UnfinishedError",
    "Waiting",
    "WouldWaitError",
    "all_of",
    "assemble",
    "assemble_batch",
    "at_once",
    "at_one_position",
    "changed_since",
    "column_reader",
    "dump_layout",
    "duration_ns",
    "finish",
    "finish_async",
    "has_applied",
    "load_layout",
    "matrix_layout",
    "model_inputs",
    "model_reader",
    "number_ids",
    "prewarm",
    "read",
    "read_last",
    "read_last_batch",
    "read_together",
    "reader",
    "row_reader",
    "scan",
    "wait_for",
]


def read(
    segment: Segment,
    entity_ids: Any,
    fields: Sequence[str] | None = None,
    *,
    positions: bool = False,
    at_least: Token | str | None = None,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    max_age: MaxAge | None = None,
    missing_partitions: MissingPartitions = "error",
) -> pa.RecordBatch:
    """Exact typed values: the columns ``entity_id`` (as passed), ``found`` (bool), ``event_time_ns`` (int64), with
    ``positions`` then ``log_position`` (int64), and the fields.

    One row out per id in, in the same order; everything but the first two is null where an entity is not found. Each
    row is one whole version. Releases the GIL. A row's log position is that of the write that made it. With
    ``at_least``, waits as :func:`wait_for`.

    With ``max_age``, as for :func:`assemble_batch`, older values are null, and a column ``fresh`` (bool) before the
    fields says which entities have a row without such values.

    Where this node holds some of the deployment's partitions, an entity of another one raises, or, with
    ``missing_partitions="mask"``, is not found, and a column ``not_held`` (bool) before the fields says which are.

    :raises EntityIdError: naming the first id that is empty, null or no text. :raises InvalidRowError: for unknown
        fields. :raises InvalidMaxAgeError: for limits that are no durations above 0, or for fields that are not read.
        :raises NotYetAppliedError, TokenError: as :func:`wait_for`. :raises NotHeldError: for the first entity whose
        partition is not held.
    """
    if at_least is not None:
        wait_for(segment, at_least, timeout_ms=timeout_ms)
    reader = ColumnReader(segment, fields, positions=positions, max_age=max_age, missing_partitions=missing_partitions)
    return reader(entity_ids).to_batch()


def scan(
    segment: Segment, prefix: str | None = None, limit: int | None = None, fields: Sequence[str] | None = None
) -> pa.RecordBatchReader:
    """All rows, or those whose ids begin with ``prefix``, at most ``limit``, in no particular order: the columns
    ``entity_id``, ``event_time_ns`` and the fields, as :func:`read` returns them and writes take them.

    Batches are read as they are consumed, beside a writer: each row is one whole version, each entity comes at most
    once, and one that has a row throughout comes. All are of the generation at the call, as a flip leaves it, whose
    memory stays until the reader is released. Releases the GIL.

    :raises InvalidRowError: for unknown fields. :raises EntityIdError: for a prefix that is no text. :raises
        ValueError: for a limit that is no number of rows.
    """
    return scan_view(segment.current_view(), prefix, limit, fields)


def changed_since(
    segment: Segment,
    position: int | Token,
    *,
    prefix: str | None = None,
    limit: int | None = None,
    fields: Sequence[str] | None = None,
) -> Changes:
    """The rows and deletions whose log position is greater than ``position``, in no particular order: a pair of
    ``batches``, a reader of Arrow batches, and ``through``, the position to ask for next time.

    Columns: ``entity_id``, ``event_time_ns``, ``position``, ``deleted`` (bool), the fields, null in a deletion. A row
    comes once, as it is now, however often it changed. Applied to the rows as they were at ``position``, the changes
    make those of now. Rows that were written without a log have position 0 and are in the changes since 0 alone, which
    are all rows and the deletions that are remembered. A field called ``position`` or ``deleted`` is the column
    ``position:field`` or ``deleted:field``.

    As with :func:`scan`, batches are read as they are consumed, beside a writer, and are of the generation at the call.
    With a ``limit`` that is reached, ``through`` is not: ask for the same position again.

    With several partitions ``position`` is a token, such as ``through``, and positions are those of each row's own
    partition. Of a partition that the token lacks all rows come, and without a token, for 0, of all that are held.

    :raises ChangesForgottenError: if the segment has forgotten a deletion since then, as growth does a week of event
        time later; its ``complete_from`` is the least position that can be asked for.
    :raises InvalidRowError: for unknown fields. :raises EntityIdError: for a prefix that is no text. :raises
        ValueError: for an invalid position or limit. :raises PartitionedError: for a position that is no token,
        with several partitions. :raises TokenError: for a token of another log.
    """
    return changes_view(segment.current_view(), position, prefix, limit, fields)


def column_reader(
    segment: Segment,
    fields: Sequence[str] | None = None,
    *,
    positions: bool = False,
    max_age: MaxAge | None = None,
    missing_partitions: MissingPartitions = "error",
) -> ColumnReader:
    """A callable that reads a choice of fields, of any type, as typed columns; what :func:`read` does, without Arrow.

    With ``positions`` it reads the log positions of the rows too, which :meth:`Columns.to_batch` then has. With
    ``missing_partitions="mask"`` its columns say which entities are not held, where they raise :class:`NotHeldError`
    otherwise.

    :raises InvalidRowError: for fields that the schema does not have. :raises InvalidMaxAgeError: as :func:`read`.
    """
    return ColumnReader(segment, fields, positions=positions, max_age=max_age, missing_partitions=missing_partitions)


def row_reader(
    parts: Sequence[tuple[Segment, Sequence[str] | None]],
    *,
    positions: bool = False,
    max_ages: Sequence[MaxAge | None] | None = None,
) -> RowReader:
    """A callable that reads one entity in several segments at once, some fields of each, as Python values; the fastest
    for few fields. With ``positions`` it reads the log positions of the rows too. ``max_ages`` has the age limits of
    each segment.

    :raises InvalidRowError: for fields that a schema does not have. :raises InvalidMaxAgeError: as :func:`read`.
    """
    return RowReader(parts, positions=positions, max_ages=max_ages)


def reader(segment: Segment, fields: Sequence[str] | None = None, *, max_age: MaxAge | None = None) -> Reader:
    """A callable that reads some numeric fields, in the order of ``fields``; for hot loops.

    :raises InvalidRowError: for a field that the schema does not have, or that is not in a vector.
    :raises InvalidMaxAgeError: as :func:`assemble_batch`.
    """
    return Reader(segment, fields, max_age=max_age)


def model_reader(
    parts: Segment | Sequence[Any],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    *,
    dtype: Any = np.float32,
    categories: Mapping[str, Any] | None = None,
    unknown: Any = math.nan,
    missing: Any = math.nan,
) -> ModelReader:
    """A callable that fills the matrix of a model, float32 or float64: the columns in the model's order, texts and
    integers as the codes of their categories, gaps as the model wants them.

    ``parts`` is a segment, or several, each alone or in a pair with the names of its fields to choose from. ``columns``
    are names of fields, ``Schema.field`` where several schemas have one of that name, or a dict of the model's names to
    them; by default every number, and every field with categories. A field with a shape is as many columns.

    ``categories`` has by column the categories in the order of their codes, or a dict of codes by category;
    ``unknown`` is what others become, a number or ``"error"``. ``missing`` is what nulls become, and the rows of
    entities that are not found. Both may be dicts by column, whose other columns have NaN.

    :raises InvalidRowError: for a column that is no field of a fitting type, categories that no such field can have, or
        a dtype other than float32 and float64.
    """
    return models.model_reader(parts, columns, dtype=dtype, categories=categories, unknown=unknown, missing=missing)


def model_inputs(model: Any) -> dict[str, Any]:
    """``columns`` and ``categories`` of a fitted model, for :func:`model_reader`: of LightGBM, XGBoost, or an estimator
    or pipeline of scikit-learn that was fitted with a table.

    LightGBM and XGBoost keep the categories of pandas' category columns: XGBoost since 3.1, and its texts are taken
    only in ASCII, as some versions cut others. Models of scikit-learn only know names.

    :raises InvalidRowError: for a model that does not know the names of its columns.
    """
    return fitted.model_inputs(model)


def prewarm(*, freeze: bool = False) -> None:
    """Load the compiled kernels of reads now rather than at the first read (seconds after an install, then about half a
    second).

    With ``freeze`` Python's cyclic collector is run once, and then never looks again at what is alive now: call it when
    models and all else that lives long is loaded, so that no request waits for a collection of all that.
    """
    from quorin.engine import kernels

    kernels.load(kernels.READING)
    if freeze:
        gc.collect()
        gc.freeze()
        # A full collection waits until a quarter as many objects are new as the last one found: let it find none.
        gc.collect()
