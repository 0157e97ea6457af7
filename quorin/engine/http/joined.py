"""Rows of several schemas joined to vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quorin import assembly
from quorin.engine.http.replies import Vectors
from quorin.engine.http.requests import InvalidRequestError, check_values

if TYPE_CHECKING:
    from quorin.engine.arrays import Float32s, Int64s, Mask
    from quorin.engine.http.asked import Asked
    from quorin.engine.http.catalogue import Catalogue
    from quorin.engine.http.requests import Assemble, Part
    from quorin.schema import FeatureField, Schema
    from quorin.shm import Segment


def join(catalogue: Catalogue, request: Assemble, max_values: int, asked: Asked) -> Vectors:
    """One vector for each row of the request: the fields of its first schema, then those of the second, and so on.

    :raises InvalidRequestError: for a schema, field or column that there is not, and beyond ``max_values``.
    :raises EntityIdError: for an id that is empty. :raises NotYetAppliedError, TokenError: for what is asked for.
    """
    parts = [_bound(catalogue.segment(part.schema), part, request) for part in request.parts]
    width = sum(field.element_count for part in parts for field in part.fields)
    check_values(len(parts[0].entity_ids) * width, max_values)
    for part in parts:
        asked.wait(part.segment)
    count = len(parts[0].entity_ids)
    positions = [np.empty(count, np.int64) if request.positions else None for _ in parts]
    read = [_read(part, own) for part, own in zip(parts, positions, strict=True)]
    values = read[0][0] if len(read) == 1 else np.concatenate([vectors for vectors, _ in read], axis=1)
    found = np.stack([found for _, found in read], axis=1)
    read_positions = np.stack([own for own in positions if own is not None], axis=1) if request.positions else None
    return Vectors(values, found, [(part.segment.schema, part.fields) for part in parts], read_positions)


class _Bound(NamedTuple):
    """A part of the request with what it names."""

    segment: Segment
    entity_ids: Any
    fields: list[FeatureField]
    is_whole: bool


def _bound(segment: Segment, part: Part, request: Assemble) -> _Bound:
    schema = segment.schema
    numeric = {field.name: field for field in schema.fields if field.element_count}
    names = list(numeric) if part.fields is None else part.fields
    wrong = [name for name in names if name not in numeric]
    if wrong or not names:
        detail = f"{schema.__name__}: expected numeric fields of one size, which are {list(numeric)}, got {wrong}"
        raise InvalidRequestError(422, detail)
    ids = request.entities[_entity(part, schema, list(request.entities))]
    return _Bound(segment, ids, [numeric[name] for name in names], part.fields is None)


def _entity(part: Part, schema: Schema, columns: list[str]) -> str:
    """The column whose ids find the rows of a schema."""
    name = part.entity
    if name is None:
        name = columns[0] if len(columns) == 1 else schema.entity
    if name not in columns:
        raise InvalidRequestError(
            422, f"the entity of {part.schema}: expected one of the columns {columns}, got {name!r}"
        )
    return name


def _read(part: _Bound, positions: Int64s | None) -> tuple[Float32s, Mask]:
    if part.is_whole:
        return assembly.assemble_batch(part.segment, part.entity_ids, positions=positions)
    read = assembly.reader(part.segment, [field.name for field in part.fields])
    return read.batch(part.entity_ids, positions=positions)
