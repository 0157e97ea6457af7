"""``feast apply`` and ``feast teardown``: create segments, upgrade them to changed views, remove them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from feast_quorin.checks import view_checks
from feast_quorin.names import is_field_name, project_prefix, schema_names
from feast_quorin.views import stored_view
from quorin.errors import SchemaError, SegmentConflictError, SegmentNotFoundError, UpgradeConflictError
from quorin.schema import is_other_entity, make_schema, schema_to_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from feast.repo_config import RepoConfig

    from feast_quorin.session import Session
    from feast_quorin.views import StoredView
    from quorin.schema import FeatureField, Schema

_ATTEMPTS = 5


def apply_tables(session: Session, config: RepoConfig, tables: Iterable[Any]) -> None:
    """:func:`apply_view` for every view of an ``apply``.

    Fields of removed features are dropped only if Feast numbered the new definition as a version: Feast also applies
    definitions that do not become current (``no_promote``, or an older ``version``). If versions of views are enabled,
    each has a segment of its own, and its features never change.

    :raises SchemaError: for checks in a view's tags that are wrong; nothing of that view has changed.
    """
    for table in tables:
        view = stored_view(config, table)
        checks = view_checks(table, view)
        if config.registry.enable_online_feature_view_versioning and session.catalogue.is_known(view.schema.__name__):
            continue
        apply_view(session, view, drops=getattr(table, "current_version_number", None) is not None)
        session.catalogue.put_checks(view.schema.__name__, checks)


def apply_view(session: Session, view: StoredView, *, drops: bool) -> None:
    """Create the view's segment, or upgrade it to the view's fields with its rows.

    A feature keeps its values if its name and type did not change. A new feature is null, and so is one whose type
    changed, because its field has another name. A consumer that runs does the upgrade (:mod:`quorin.evolution`), and
    readers follow at their next read. A crash leaves the old segment current and complete; applying again finishes the
    upgrade.

    Rows of other join keys, or of keys with other types, do not belong to the view: it starts empty.

    With ``drops``, such rows and fields that the view does not have are removed; otherwise they stay.

    :raises UpgradeAbortedError, WriterLeaseHeldError: if another process that is not a consumer keeps the writer lease
        for ``timeout_ms``.
    :raises SegmentConflictError, UpgradeConflictError: if other processes keep changing the view's segment.
    :raises SchemaError: if the schema of this name is not a feature view's.
    """
    for _ in range(_ATTEMPTS):
        with suppress(SegmentConflictError, UpgradeConflictError):  # Another process was first: continue from there.
            _apply_once(session, view, drops=drops)
            return
    _apply_once(session, view, drops=drops)


def _apply_once(session: Session, view: StoredView, *, drops: bool) -> None:
    name = view.schema.__name__
    vacancy = session.catalogue.vacancy(name)
    stored = session.catalogue.current_schema(name)
    if vacancy.replacing is not None and (stored is None or session.catalogue.is_left(name)):
        session.discard(name, vacancy)  # Another machine dropped the view, and this one still has its rows.
        vacancy = session.catalogue.vacancy(name)
    if stored is None:
        session.catalogue.create(view.schema, vacancy)
        return
    _check_is_a_views(session, view, stored)
    if is_other_entity(view.schema, stored):
        if drops:
            session.discard(name)
            _apply_once(session, view, drops=drops)
        return
    try:
        with session.latest(view) as segment:
            current = segment.schema
    except SegmentNotFoundError:  # Only with an external consumer, which replays the log into the new segment.
        session.catalogue.restore(name)
        return
    if schema_to_json(stored) != schema_to_json(current):  # An earlier call was interrupted.
        session.catalogue.swap_schema(stored, current)
    fields = tuple(view.schema.fields) if drops else _all_fields(current, view.schema)
    entity = view.schema.entity or current.entity
    if set(fields) != set(current.fields) or entity != current.entity:
        tie_breaker = view.schema.tie_breaker or (None if drops else current.tie_breaker)
        version = current.version + 1
        session.upgrade(current, make_schema(name, fields, version=version, tie_breaker=tie_breaker, entity=entity))


def remove_views(session: Session, project: str, views: Iterable[str]) -> None:
    """Remove the rows and schemas of views, in all their versions, from shared memory and the control plane.

    :raises WriterLeaseHeldError: if another process keeps a writer lease for ``timeout_ms``.
    """
    for view in views:
        for name in schema_names(session.catalogue.schema_names(), project, view):
            session.discard(name)


def remove_project(session: Session, project: str) -> None:
    """Remove the rows and schemas of all views of a project; raises as :func:`remove_views`."""
    for name in session.catalogue.schema_names():
        if name.startswith(project_prefix(project)):
            session.discard(name)


def _check_is_a_views(session: Session, view: StoredView, stored: Schema) -> None:
    fields = (field.name for field in stored.fields if field.name != stored.tie_breaker)
    others = [name for name in fields if not is_field_name(name)]
    if others:
        address = session.registry.backend.address
        raise SchemaError(
            f"feature view {view.name!r}: the schema {stored.__name__!r} at {address} is not a feature view's: "
            f"it has a field {others[0]!r}. Choose another project name or another `path`"
        )


def _all_fields(old: Schema, new: Schema) -> tuple[FeatureField, ...]:
    kept = {field.name for field in old.fields}
    return (*old.fields, *(field for field in new.fields if field.name not in kept))
