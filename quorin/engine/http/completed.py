"""Vectors of a request, of which some rows are held by other nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quorin.engine.routing.reads import ASSEMBLE_PATH, away_of
from quorin.engine.routing.router import HereOnly, RowsRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from quorin.assembly import MaxAge
    from quorin.engine.arrays import AnyArray, Float32s, Int64s, Mask
    from quorin.engine.routing.asking import Asking
    from quorin.engine.routing.router import Fetching, Missing, Waiting
    from quorin.schema import FeatureField
    from quorin.shm import Segment


class Bound(NamedTuple):
    """A part of the request with what it names; ``entity`` is the column of its ids."""

    segment: Segment
    entity: str
    entity_ids: Any
    fields: list[FeatureField]
    is_whole: bool
    max_age: MaxAge | None


class VectorsRead(NamedTuple):
    """The vectors of a part, which are found, which have no value over its age limit, the rows' log positions if they
    were asked for, and which are not held; None if all partitions are.
    """

    values: Float32s
    found: Mask
    fresh: Mask
    positions: Int64s | None
    not_held: Mask | None


def complete(
    parts: Sequence[Bound],
    reads: Sequence[VectorsRead],
    waiting: Waiting,
    elsewhere: Fetching,
    missing_partitions: Missing,
) -> Asking[Mask | None]:
    """Fill in the rows that this node does not hold: one request to each other node for all schemas of an entity.

    Returns which rows no node has answered for, bool of the shape of ``found`` in a reply; None without any.

    :raises NotHeldError: if there are such rows, unless ``missing_partitions`` is ``"mask"``.
    """
    lacking: Mask | None = None
    for entity in dict.fromkeys(part.entity for part in parts):
        own = [index for index, part in enumerate(parts) if part.entity == entity]
        # The partition is the entity's: rows of all schemas are away together, but while one of them moves.
        masks = [mask for index in own if (mask := reads[index].not_held) is not None]
        first = parts[own[0]]
        away = away_of(first.segment, first.entity_ids, np.logical_or.reduce(masks)) if masks else None
        if away is None:
            continue
        request = _question(
            [parts[index] for index in own], reads[own[0]].positions is not None, waiting, away.partition_count
        )
        is_pinned = any(parts[index].segment.is_pinned for index in own)
        router = HereOnly(elsewhere) if is_pinned else elsewhere
        fetched = yield from router.fetch(request, away.ids, away.partitions)
        if fetched.lacking and missing_partitions == "error":
            router.raise_lacking(request, fetched.lacking)
        for rows, batch in fetched.parts:
            _fill([reads[index] for index in own], away.rows[rows], batch)
        if fetched.lacking:
            lacking = np.zeros((len(first.entity_ids), len(parts)), np.bool_) if lacking is None else lacking
            for index in own:
                lacking[away.in_partitions(fetched.lacking), index] = True
    return lacking


def _question(parts: Sequence[Bound], positions: bool, waiting: Waiting, partition_count: int) -> RowsRequest:
    schemas = [
        {
            "schema": part.segment.schema.__name__,
            "fields": [field.name for field in part.fields],
            **({} if part.max_age is None else {"max_age": part.max_age}),
        }
        for part in parts
    ]
    about = {"schemas": schemas, "positions": positions}
    names = ["found", *(["fresh"] if any(part.max_age is not None for part in parts) else [])]
    names += [*(["log_position"] if positions else []), "vector"]
    width = sum(field.element_count for part in parts for field in part.fields)

    def problem(batch: pa.RecordBatch) -> str | None:
        if batch.schema.names != names or batch.schema.field("vector").type.list_size != width:
            return f"expected the columns {names} with vectors of {width}, got {batch.schema.to_string()}"
        return None

    return RowsRequest(ASSEMBLE_PATH, about, parts[0].segment.schema.__name__, waiting, problem, partition_count)


def _fill(reads: Sequence[VectorsRead], rows: Int64s, batch: pa.RecordBatch) -> None:
    """Put an answer's rows where they belong in what was read here of each schema."""
    vectors, found, first = _matrix(batch, "vector"), _matrix(batch, "found"), 0
    fresh = _matrix(batch, "fresh") if "fresh" in batch.schema.names else found
    positions = _matrix(batch, "log_position") if "log_position" in batch.schema.names else None
    for index, read in enumerate(reads):
        width = read.values.shape[1]
        read.values[rows] = vectors[:, first : first + width]
        first += width
        read.found[rows] = found[:, index]
        read.fresh[rows] = fresh[:, index]
        if read.positions is not None and positions is not None:
            read.positions[rows] = positions[:, index]


def _matrix(batch: pa.RecordBatch, name: str) -> AnyArray:
    """A column of lists of one size as an array, 0 for nulls."""
    column = batch.column(name)
    values = column.values
    if values.null_count:
        values = values.fill_null(0)
    array: AnyArray = values.to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    return array
