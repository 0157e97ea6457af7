"""What ``feast apply`` and ``feast teardown`` do to segments: create, carry over to a changed schema, remove."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from feast_quorin.names import is_field_name
from quorin.errors import SchemaError, SegmentConflictError, SegmentNotFoundError
from quorin.schema import is_other_entity, make_schema, schema_to_json

if TYPE_CHECKING:
    from feast_quorin.session import Engine
    from feast_quorin.views import StoredView
    from quorin.schema import FeatureField, Schema

_ATTEMPTS = 5


def apply_view(engine: Engine, view: StoredView, *, drops: bool) -> None:
    """Give a view a segment with its fields. Rows of a segment with other fields are carried over.

    Features that kept name and type keep their values; new ones, and those of another type, are null: their fields have
    other names, so that the segment is upgraded (:mod:`quorin.evolution`), by its consumer if one runs. Readers follow
    at their next read. A crash in between leaves the old segment current and whole; applying again completes it.

    Rows by other join keys, or by keys of other types, are no rows of the view: it begins anew without them.

    ``drops`` says whether such rows, and fields that the view does not have, go away; else they stay as they are.

    :raises UpgradeAbortedError, WriterLeaseHeldError: if another process goes on writing to the segment for
        ``timeout_ms``, no consumer.
    :raises SegmentConflictError: if other processes make segments of the view again and again.
    :raises SchemaError: if a schema of this name is there that is no feature view's.
    """
    for _ in range(_ATTEMPTS):
        with suppress(SegmentConflictError):  # Another process was quicker: go on with its segment.
            _apply_once(engine, view, drops=drops)
            return
    _apply_once(engine, view, drops=drops)


def _apply_once(engine: Engine, view: StoredView, *, drops: bool) -> None:
    name = view.schema.__name__
    beginning = engine.catalogue.beginning(name)
    known = engine.catalogue.current_schema(name)
    if known is None:
        engine.catalogue.create(view.schema, beginning)
        return
    _check_ours(engine, view, known)
    if is_other_entity(view.schema, known):
        if drops:
            engine.discard(name)
            _apply_once(engine, view, drops=drops)
        return
    try:
        current = engine.reader(view).schema
    except SegmentNotFoundError:  # Only possible where an external consumer is to fill segments: it replays the log.
        engine.catalogue.restore(name)
        return
    if schema_to_json(known) != schema_to_json(current):  # An earlier call did not get to its end.
        engine.catalogue.swap_schema(known, current)
    fields = tuple(view.schema.fields) if drops else _of_both(current, view.schema)
    entity = view.schema.entity or current.entity
    if set(fields) != set(current.fields) or entity != current.entity:
        tie_breaker = view.schema.tie_breaker or (None if drops else current.tie_breaker)
        version = current.version + 1
        engine.upgrade(current, make_schema(name, fields, version=version, tie_breaker=tie_breaker, entity=entity))


def remove(engine: Engine, name: str) -> None:
    """Remove the rows and the schema of this name from shared memory and the control plane, if there are any.

    :raises WriterLeaseHeldError: if another process goes on writing to the segment for ``timeout_ms``.
    """
    if engine.catalogue.is_known(name):
        engine.discard(name)


def check_entity(view: StoredView, stored: Schema) -> None:
    """Refuse to find rows of a view by keys that they were not written by.

    :raises SchemaError: naming both.
    """
    if is_other_entity(view.schema, stored):
        raise SchemaError(
            f"feature view {view.name!r}: its rows are by {stored.entity}, and here it is known by "
            f"{view.schema.entity}. Run `feast apply`, or refresh the registry if that was done elsewhere"
        )


def _check_ours(engine: Engine, view: StoredView, known: Schema) -> None:
    others = [field.name for field in known.fields if not is_field_name(field.name) and field.name != known.tie_breaker]
    if others:
        raise SchemaError(
            f"feature view {view.name!r}: the schema {known.__name__!r} at {engine.registry.backend.address} is no "
            f"feature view's: it has a field {others[0]!r}. Give the project another name or another `path`"
        )


def _of_both(old: Schema, new: Schema) -> tuple[FeatureField, ...]:
    kept = {field.name for field in old.fields}
    return (*old.fields, *(field for field in new.fields if field.name not in kept))
