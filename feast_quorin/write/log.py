"""The log as the plugin writes to it: append rows of a view, and wait until they are where ``wait`` says.

A view without a segment gets one at its first write. Fields that its segment lacks are added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from feast_quorin.apply import apply_view
from feast_quorin.views import check_entity, in_feasts_names
from feast_quorin.write import tokens
from quorin import evolution
from quorin.errors import (
    CheckFailedError,
    EntityIdError,
    InvalidRowError,
    ReplaceAbortedError,
    ReplaceConflictError,
    SchemaMismatchError,
)
from quorin.inline_consumer import progress, shows, wait_until_applied

if TYPE_CHECKING:
    import pyarrow as pa

    from feast_quorin.session import Session
    from feast_quorin.views import StoredView
    from quorin.schema import Schema
    from quorin.shm import Segment
    from quorin.wal import Tail, Token


def write(session: Session, view: StoredView, batch: pa.RecordBatch, *, partial: bool = False) -> Token:
    """Append rows to the log. Returns the position of the last.

    Fields that a ``partial`` batch does not have stay as they are.

    :raises LogFullError: if the log is at its limit. :raises InvalidRowError, EntityIdError: naming the view.
    """
    _ensure_accepted(session, view)
    try:
        token = session.producer.write_many(view.schema, batch, partial=partial)
    except (InvalidRowError, EntityIdError) as error:  # What only the engine checks, such as text that is not UTF-8.
        raise type(error)(f"view {view.name!r}: {error}") from None
    tokens.add(session.written, token)
    return token


def replace(
    session: Session,
    view: StoredView,
    batches: Iterator[pa.RecordBatch],
    progress: Callable[[int], Any] | None,
    reference: pa.Table | None,
) -> int:
    """Replace all rows of the view. Returns the position of the commit.

    :raises ReplaceConflictError: if another process is replacing them. :raises ReplaceAbortedError: without rows.
    :raises LogFullError, InvalidRowError, EntityIdError: as :func:`write`; nothing is replaced.
    """
    _ensure_accepted(session, view)
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        if progress is not None:
            progress(rows - done)
        done = rows

    options: dict[str, Any] = {"reference": reference, "wait_for": "log", "progress": advance}
    try:
        return evolution.replace(view.schema, batches, session.registry, **options).position
    except CheckFailedError as error:
        raise CheckFailedError(view.name, [in_feasts_names(view, text) for text in error.failures]) from None
    except (ReplaceConflictError, ReplaceAbortedError) as error:
        raise type(error)(in_feasts_names(view, str(error))) from None


def write_row(
    session: Session, view: StoredView, entity_id: str, values: Mapping[str, Any], event_time_ns: int
) -> tuple[Token, Tail | None]:
    """:func:`write` for one row with a value for every field. Returns also the end of the log for :func:`settle`, if
    this process seems to be the one that applies it.
    """
    _ensure_accepted(session, view)
    row = view.schema, entity_id, values, event_time_ns
    after = None if session.settings.consumer == "external" else session.consumer_of(view).own_position
    token: Token
    if after is None:
        token, tail = session.producer.write(*row), None
    else:
        token, tail = session.producer.write_and_read(*row, after=after)
    tokens.add(session.written, token)
    return token, tail


def settle(session: Session, view: StoredView, position: int, tail: Tail | None = None) -> None:
    """Return when the log is applied up to ``position``, or at once with ``wait: logged``. Applies it in this process
    unless an external consumer does. ``tail`` is what :func:`write_row` returned for the last row.

    :raises WriteSyncTimeoutError: if nothing was applied for ``timeout_ms``. The write stays in the log.
    :raises NotYetAppliedError: with ``wait: fleet``, if another machine did not apply it within ``timeout_ms``.
    """
    settings = session.settings
    waits = settings.wait != "logged"
    if settings.consumer != "external":
        consumer = session.consumer_of(view)
        if waits:
            consumer.settle(position, tail)
        else:
            consumer.drain(tail, calls_holder=True)
    elif waits:
        name = view.schema.__name__
        wait_until_applied(
            name,
            position,
            lambda: _of_latest(session, view, progress),
            timeout_ms=settings.timeout_ms,
            shows=lambda: bool(_of_latest(session, view, lambda segment: shows(segment, position))),
        )
    if settings.wait == "fleet":
        session.producer.wait_for_nodes(view.schema, position, timeout_ms=settings.timeout_ms)


def _of_latest(session: Session, view: StoredView, measure: Callable[[Segment], int]) -> int:
    """A measure of the view's current segment; 0 if that was replaced at this moment."""
    try:
        with session.latest(view) as segment:
            return measure(segment)
    except SchemaMismatchError:
        return 0


def _ensure_accepted(session: Session, view: StoredView) -> None:
    """Ensure that the view's segment has its fields, unless this process only appends: the segment may then be another
    machine's.
    """
    name = view.schema.__name__
    opened = session.opened_segment(view)
    # What is in the log gets applied, whichever process logged it. If the segment is gone, one with other keys may have
    # taken its place, so the view is checked again.
    is_current = opened is None or session.is_in_force(opened)
    if is_current and session.accepted.get(name) is view.schema:
        return
    stored = session.catalogue.current_schema(name)
    if stored is not None:
        check_entity(view, stored)
    only_appends = session.settings.consumer == "external" and session.settings.wait == "logged"
    if stored is None or not (only_appends or _names(view.schema) <= _names(stored)):
        apply_view(session, view, drops=False)
    session.accepted[name] = view.schema


def _names(schema: Schema) -> set[str]:
    return {field.name for field in schema.fields}
