"""Rows of several schemas joined to vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quorin import assembly
from quorin.engine.http.completed import Bound, VectorsRead, complete
from quorin.engine.http.elsewhere import check_answering
from quorin.engine.http.replies import Vectors
from quorin.engine.http.requests import InvalidRequestError, check_values
from quorin.engine.routing.router import HereOnly

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray
    from quorin.engine.http.asked import Asked
    from quorin.engine.http.catalogue import Catalogue
    from quorin.engine.http.requests import Assemble, Part
    from quorin.engine.log.token import Token
    from quorin.engine.routing.asking import Asking
    from quorin.engine.routing.router import Fetching, Missing
    from quorin.schema import Schema
    from quorin.shm import Segment


def join(
    catalogue: Catalogue,
    request: Assemble,
    max_values: int,
    asked: Asked,
    elsewhere: Fetching,
    missing_partitions: Missing,
) -> Asking[Vectors]:
    """One vector for each row of the request: the fields of its first schema, then those of the second, and so on.
    What this node does not hold comes from ``elsewhere``, unless the rows are to be of one moment.

    :raises InvalidRequestError: for a schema, field or column that there is not, and beyond ``max_values``.
    :raises EntityIdError: for an id that is empty. :raises NotYetAppliedError, TokenError: for what is asked for.
    :raises NotHeldError: for a partition that no node answers for.
    """
    parts = [_bound(catalogue.segment(part.schema), part, request) for part in request.parts]
    width = sum(field.element_count for part in parts for field in part.fields)
    check_values(len(parts[0].entity_ids) * width, max_values)
    for part in parts:
        asked.wait(part.segment)
        if asked.is_forwarded:
            check_answering(part.segment)
    position = None
    if request.consistent_timeout_ms is None:
        read = [_read(part, positions=request.positions) for part in parts]
    else:
        position, read = assembly.at_one_position(
            lambda: [part.segment for part in parts],
            lambda at_most: [_read(part, at_most, positions=request.positions) for part in parts],
            timeout_ms=request.consistent_timeout_ms,
        )
        elsewhere = HereOnly(elsewhere)
    not_held = yield from complete(parts, read, asked.waiting, elsewhere, missing_partitions)
    values = read[0].values if len(read) == 1 else np.concatenate([part.values for part in read], axis=1)
    own = [part.positions for part in read if part.positions is not None]
    has_limits = any(part.max_age is not None for part in request.parts)
    return Vectors(
        values,
        _beside([part.found for part in read]),
        [(part.segment.schema, part.fields) for part in parts],
        positions=_beside(own) if own else None,
        fresh=_beside([part.fresh for part in read]) if has_limits else None,
        position=position,
        not_held=not_held,
    )


def _beside(columns: list[AnyArray]) -> AnyArray:
    """Columns of shape ``(N,)`` as one array of shape ``(N, columns)``; not copied if it is one."""
    return columns[0][:, None] if len(columns) == 1 else np.stack(columns, axis=1)


def _bound(segment: Segment, part: Part, request: Assemble) -> Bound:
    schema = segment.schema
    numeric = {field.name: field for field in schema.fields if field.element_count}
    names = list(numeric) if part.fields is None else part.fields
    wrong = [name for name in names if name not in numeric]
    if wrong or not names:
        detail = f"{schema.__name__}: expected numeric fields of one size, which are {list(numeric)}, got {wrong}"
        raise InvalidRequestError(422, detail)
    entity = _entity(part, schema, list(request.entities))
    # Another node names the fields even if it asks for all, whose plan a segment has.
    is_whole = names == list(numeric)
    return Bound(segment, entity, request.entities[entity], [numeric[name] for name in names], is_whole, part.max_age)


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


def _read(part: Bound, at_most: int | Token | None = None, *, positions: bool) -> VectorsRead:
    count = len(part.entity_ids)
    own = np.empty(count, np.int64) if positions else None
    not_held = np.empty(count, np.bool_) if part.segment.partitioning.is_partial else None
    # A segment that is replaced by one with fewer partitions meanwhile raises, so nothing is not found by mistake.
    others: dict[str, Any] = {} if not_held is None else {"missing_partitions": "mask", "not_held_mask": not_held}
    if part.is_whole and part.max_age is None and at_most is None:
        values, found = assembly.assemble_batch(part.segment, part.entity_ids, positions=own, **others)
        return VectorsRead(values, found, found, own, not_held)
    reader = assembly.reader(part.segment, [field.name for field in part.fields], max_age=part.max_age)
    fresh = np.empty(count, np.bool_)
    values, found = reader.batch(part.entity_ids, fresh_mask=fresh, positions=own, at_most=at_most, **others)
    return VectorsRead(values, found, fresh, own, not_held)
