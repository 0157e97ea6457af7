"""What segments know of the past: the last values of a field, and what changed since a position of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from quorin import assembly
from quorin.engine.http.requests import InvalidRequestError, check_values

if TYPE_CHECKING:
    import pyarrow as pa

    from quorin.engine.http.catalogue import Catalogue
    from quorin.engine.http.limits import Limits
    from quorin.engine.http.options import RequestOptions
    from quorin.engine.http.requests import Changes, Last
    from quorin.engine.log.token import Token
    from quorin.schema import FeatureField, Schema


class LastFound(NamedTuple):
    """The last values of a field: a row for each entity, as :func:`quorin.assembly.read_last_batch` returns them."""

    schema: Schema
    field: FeatureField
    rows: pa.RecordBatch


class ChangesFound(NamedTuple):
    """Changed rows as :func:`quorin.assembly.changed_since` returns them, and up to where these are all changes; None
    if there are more than were asked for.
    """

    schema: Schema
    fields: list[FeatureField]
    rows: pa.Table
    through: int | Token | None


def last_of(catalogue: Catalogue, request: Last, max_values: int, options: RequestOptions) -> LastFound:
    """:raises InvalidRequestError: if the reply had too many values. :raises InvalidRowError: for a field that keeps no
    last values.
    """
    segment = catalogue.segment(request.schema)
    field = next((one for one in segment.schema.fields if one.name == request.field), None)
    kept = 1 if field is None or field.history is None else field.history
    check_values(len(request.entity_ids) * min(kept, request.n or kept), max_values)
    options.wait(segment)
    rows = assembly.read_last_batch(segment, request.entity_ids, request.field, request.n)
    assert field is not None  # noqa: S101 - the read has refused a field that there is not
    return LastFound(segment.schema, field, rows)


def changes_of(
    catalogue: Catalogue, request: Changes, limits: Limits, max_values: int, options: RequestOptions
) -> ChangesFound:
    """:raises InvalidRequestError: if the reply had too many rows or values. :raises ChangesForgottenError: if the
    segment does not know all changes since then. :raises InvalidRowError: for unknown fields.
    """
    segment = catalogue.segment(request.schema)
    options.wait(segment)
    schema = segment.schema
    fields = [one for one in schema.fields if request.fields is None or one.name in request.fields]
    if request.fields is not None:
        fields.sort(key=lambda one: request.fields.index(one.name))  # type: ignore[union-attr]
    width = sum(max(1, one.element_count) for one in fields)
    most = min(limits.rows, max_values // max(1, width))
    limit = most if request.limit is None else min(request.limit, most)
    changes = assembly.changed_since(
        segment, request.position, prefix=request.prefix, limit=limit + 1, fields=request.fields
    )
    rows = changes.batches.read_all()
    if len(rows) <= limit:
        return ChangesFound(schema, fields, rows, changes.through)
    if request.limit is None or request.limit > most:
        raise InvalidRequestError(
            413,
            f"more than {most} rows changed since position {request.position}, as many as fit into a reply; expected a "
            "prefix, fewer fields, a limit, or a later position",
        )
    return ChangesFound(schema, fields, rows.slice(0, limit), None)
