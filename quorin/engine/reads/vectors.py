"""Float32 vectors of entities, by the compiled kernels: one, a few, many; and readers bound to a choice of fields."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from quorin.engine.format.abi import FOUND, P_OUT_BYTES, P_POSITIONS
from quorin.engine.memory.plans import vector_plan
from quorin.engine.reads import arguments as buffers
from quorin.engine.reads.ages import MaxAge, age_limits, aged_vector_plan
from quorin.engine.reads.many import read_many
from quorin.engine.reads.not_held import check_one_held, note_not_held
from quorin.engine.reads.waiting import DEFAULT_TIMEOUT_MS, wait_for
from quorin.engine.rows.intake import id_array
from quorin.engine.rows.value import check_entity_id
from quorin.errors import EntityNotFoundError, InvalidRowError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quorin.engine.arrays import Float32s, Int64s, Mask
    from quorin.engine.memory.view import SegmentView
    from quorin.engine.reads.not_held import MissingPartitions
    from quorin.shm import Segment
    from quorin.wal import Token

    _Plan = Int64s

_FLOAT32 = np.dtype(np.float32)
_empty = np.empty
_MAX_UNBATCHED_IDS = 16
"""Up to this number, the ids of a list are read faster one by one than as one batch, which takes an Arrow array."""


class _Options(NamedTuple):
    """What a read of many vectors is asked for besides them; :func:`assemble_batch` and :meth:`Reader.batch` describe
    it. Ages count from ``now_ns``, which is 0 without age limits.
    """

    now_ns: int = 0
    positions: Int64s | None = None
    fresh_mask: Mask | None = None
    at_most: int | Token | None = None
    missing_partitions: MissingPartitions = "error"
    not_held_mask: Mask | None = None

    @property
    def allow_single_reads(self) -> bool:
        """Whether ids may be read one by one: single reads each have a clock of their own, and tell neither freshness,
        nor what is not held, nor rows that are too new.
        """
        is_timed = self.now_ns != 0 or self.fresh_mask is not None or self.at_most is not None
        return not is_timed and self.not_held_mask is None and self.missing_partitions == "error"


_NO_OPTIONS = _Options()


def assemble(
    segment: Segment,
    entity_id: str,
    # Pass these by name. They are not keyword-only because CPython takes 10 ns for each default of such a parameter.
    out: Float32s | None = None,
    at_least: Token | str | None = None,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    max_age: MaxAge | None = None,
) -> Float32s:
    """The float32 vector of one entity, shape ``(total_element_count,)``: ``out`` if passed, else a new array.

    Numeric fixed-size fields in declaration order, shaped ones row-major; a null reads as its field's default. What
    ``out`` holds after an error is undefined. With ``at_least``, waits as :func:`wait_for`. ``max_age`` is as
    for :func:`assemble_batch`, which also says whether a value was replaced.

    :raises EntityNotFoundError: if the entity has no row. :raises NotHeldError: if this node does not hold its
        partition. :raises EntityIdError: for an id that is empty or no text.
    :raises InvalidBufferError: for an ``out`` that does not fit. :raises SegmentClosedError: after close.
    :raises NotYetAppliedError, TokenError: as :func:`wait_for`.
    """
    if at_least is not None:
        wait_for(segment, at_least, timeout_ms=timeout_ms)
    if max_age is not None:
        return _assemble_aged(segment, entity_id, out, max_age)
    view = segment._view
    if out is None:
        out = _empty(view.vector_length, _FLOAT32)
    else:
        buffers.vector_out(out, view.vector_length)
    if type(entity_id) is str and _assemble_one(view.plan, entity_id, out) == FOUND:
        return out
    return _assemble_slowly(segment, _whole_vector, entity_id, out)


def assemble_batch(
    segment: Segment,
    entity_ids: Any,
    *,
    out: Float32s | None = None,
    found_mask: Mask | None = None,
    missing: float = math.nan,
    positions: Int64s | None = None,
    at_least: Token | str | None = None,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    max_age: MaxAge | None = None,
    fresh_mask: Mask | None = None,
    missing_partitions: MissingPartitions = "error",
    not_held_mask: Mask | None = None,
) -> tuple[Float32s, Mask]:
    """The vectors of many entities: float32 of shape ``(N, total_element_count)``, and bool of shape ``(N,)``.

    ``entity_ids`` is a list of str, a NumPy array of str or bytes, a series of pandas or Polars, categories included,
    or an Arrow array of text, which is not copied (see :func:`quorin.engine.rows.intake.id_array`). Rows that are not
    found are filled with ``missing``. Releases the GIL, but for a list of few ids.

    ``positions``, int64 of shape ``(N,)``, is filled with the log positions of the writes that made the rows, 0 where
    not found. With ``at_least``, waits as :func:`wait_for`.

    ``max_age`` is a number of seconds or a ``timedelta``, or such a limit for each of some fields, by name: values in
    rows whose event time is before now minus the limit read as their fields' defaults. *Now* is the system's clock at
    the call; an event time in the future is within any limit. ``fresh_mask``, bool of shape ``(N,)``, is filled with
    which entities have a row none of whose values was replaced so.

    Where this node holds some of the deployment's partitions, an entity of another one raises, or, with
    ``missing_partitions="mask"``, is not found, and ``not_held_mask``, bool of shape ``(N,)``, is filled with which
    those are.

    :raises NotHeldError: for the first entity whose partition is not held.
    :raises EntityIdError: naming the first id that is empty, null or no text, with its row.
    :raises InvalidBufferError: for buffers that don't fit. :raises InvalidMaxAgeError: for limits that are no durations
        above 0, or for fields that there are not. :raises NotYetAppliedError, TokenError: as :func:`wait_for`.
    """
    if at_least is not None:
        wait_for(segment, at_least, timeout_ms=timeout_ms)
    is_plain = max_age is None and positions is None and fresh_mask is None and not_held_mask is None
    if is_plain and missing_partitions == "error":
        return _assemble_many(segment, _whole_vector, entity_ids, out, found_mask, missing)
    plan_for = _whole_vector if max_age is None else partial(aged_vector_plan, max_age=max_age)
    now_ns = 0 if max_age is None else time.time_ns()
    options = _Options(now_ns, positions, fresh_mask, None, missing_partitions, not_held_mask)
    return _assemble_many(segment, plan_for, entity_ids, out, found_mask, missing, options)


class Reader:
    """Bound to a segment and a choice of fields: ``reader(entity_id)`` is one vector, ``reader.batch(ids)`` many.

    ``length`` is the size of a vector. Results and errors are those of :func:`assemble` and :func:`assemble_batch`.
    """

    __slots__ = ("_ages", "_fields", "_plan", "_segment", "_view", "length")

    def __init__(self, segment: Segment, fields: Sequence[str] | None = None, *, max_age: MaxAge | None = None) -> None:
        schema = segment.schema
        by_name = {field.name: field for field in schema.fields}
        requested = [f.name for f in schema.fields if f.element_count] if fields is None else list(fields)
        wrong = [name for name in requested if name not in by_name or not by_name[name].element_count]
        if wrong or not requested:
            raise InvalidRowError(
                f"no vector of {wrong or requested}: {schema.__name__} has the numeric fields "
                f"{[f.name for f in schema.fields if f.element_count]}"
            )
        self._segment = segment
        self._fields = [by_name[name] for name in requested]
        self.length = sum(field.element_count for field in self._fields)
        self._ages = age_limits(max_age, self._fields, schema.__name__)
        self._view = segment.current_view()
        self._plan = vector_plan(self._view.descriptor, self._view.stored, self._fields, self._ages)

    def __call__(self, entity_id: str, out: Float32s | None = None) -> Float32s:
        """The vector of one entity."""
        if out is None:
            out = _empty(self.length, _FLOAT32)
        else:
            buffers.vector_out(out, self.length)
        is_quick = self._segment._view is self._view and type(entity_id) is str
        if is_quick and _assemble_one(self._plan, entity_id, out) <= FOUND:
            return out
        now_ns = 0 if self._ages is None else time.time_ns()
        return _assemble_slowly(self._segment, self._plan_for, entity_id, out, now_ns)

    def batch(
        self,
        entity_ids: Any,
        *,
        out: Float32s | None = None,
        found_mask: Mask | None = None,
        missing: float = math.nan,
        positions: Int64s | None = None,
        at_least: Token | str | None = None,
        timeout_ms: float = DEFAULT_TIMEOUT_MS,
        fresh_mask: Mask | None = None,
        at_most: int | Token | None = None,
        missing_partitions: MissingPartitions = "error",
        not_held_mask: Mask | None = None,
    ) -> tuple[Float32s, Mask]:
        """The vectors of many entities, and which were found.

        :raises InconsistentReadError: for a row that was written after the log position ``at_most``, of several
            partitions a token.
        """
        if at_least is not None:
            wait_for(self._segment, at_least, timeout_ms=timeout_ms)
        is_plain = self._ages is None and positions is None and fresh_mask is None and not_held_mask is None
        if is_plain and at_most is None and missing_partitions == "error":
            return _assemble_many(self._segment, self._plan_for, entity_ids, out, found_mask, missing)
        now_ns = 0 if self._ages is None else time.time_ns()
        options = _Options(now_ns, positions, fresh_mask, at_most, missing_partitions, not_held_mask)
        return _assemble_many(self._segment, self._plan_for, entity_ids, out, found_mask, missing, options)

    def _plan_for(self, view: SegmentView) -> _Plan:
        if self._view is not view:
            self._plan = vector_plan(view.descriptor, view.stored, self._fields, self._ages)
            self._view = view
        return self._plan


def _whole_vector(view: SegmentView) -> _Plan:
    return view.plan


def _assemble_one(plan: _Plan, entity_id: str, out: Float32s) -> int:
    """Stands in for the kernel until the first read has loaded it."""
    global _assemble_one
    from quorin.engine.kernels import assemble_one as _assemble_one

    return _assemble_one(plan, entity_id, out)


def _assemble_aged(segment: Segment, entity_id: str, out: Float32s | None, max_age: MaxAge) -> Float32s:
    """:func:`assemble` with an age limit."""
    view = segment._view
    out = _empty(view.vector_length, _FLOAT32) if out is None else buffers.vector_out(out, view.vector_length)
    plan = aged_vector_plan(view, max_age)
    if type(entity_id) is str and _assemble_one(plan, entity_id, out) <= FOUND:
        return out
    plan_for = partial(aged_vector_plan, max_age=max_age)
    return _assemble_slowly(segment, plan_for, entity_id, out, time.time_ns())


def _assemble_slowly(
    segment: Segment,
    plan_for: Callable[[SegmentView], _Plan],
    entity_id: str,
    out: Float32s,
    now_ns: int = 0,
) -> Float32s:
    """The vector where the quick path has none: for ids that are not ASCII, replaced segments, contended rows, and all
    errors.
    """
    key = check_entity_id(entity_id)
    ids = pa.array([key], pa.binary())
    found = _empty(1, np.bool_)
    while True:
        view = segment.current_view()
        plan = plan_for(view)
        if read_many(view, plan, ids, out.view(np.uint8), found, math.nan, now_ns=now_ns):
            break
    if not found[0]:
        check_one_held(segment, view, key)
        raise EntityNotFoundError(entity_id, view.name)
    return out


def _assemble_many(
    segment: Segment,
    plan_for: Callable[[SegmentView], _Plan],
    entity_ids: Any,
    out: Float32s | None,
    found_mask: Mask | None,
    missing: float,
    options: _Options = _NO_OPTIONS,
) -> tuple[Float32s, Mask]:
    """The vectors of many entities, as :func:`assemble_batch` returns them, by the plan of each view that is read."""
    now_ns, positions, fresh_mask, at_most, missing_partitions, not_held_mask = options
    first = 0
    are_few = type(entity_ids) is list and 0 < len(entity_ids) <= _MAX_UNBATCHED_IDS
    if are_few and (options is _NO_OPTIONS or options.allow_single_reads):
        plan = plan_for(segment._view)
        out, found_mask = buffers.batch_out(out, found_mask, len(entity_ids), plan.item(P_OUT_BYTES) // 4)
        if positions is None:
            first = _assemble_few(plan, entity_ids, out)
        else:
            first = _assemble_few_at_positions(plan, entity_ids, out, positions)
        if first == len(entity_ids):
            found_mask.fill(True)
            return out, found_mask
        found_mask[:first] = True
    ids = id_array(entity_ids)
    while True:
        view = segment.current_view()
        plan = plan_for(view)
        out, found_mask = buffers.batch_out(out, found_mask, len(ids), int(plan[P_OUT_BYTES]) // 4)
        if positions is not None:
            plan = _positioned(plan, positions, len(ids))
        if fresh_mask is not None:
            buffers.mask_out("fresh_mask", fresh_mask, len(ids))
        values = out.reshape(-1).view(np.uint8)
        if read_many(view, plan, ids, values, found_mask, missing, first, now_ns, at_most, fresh_mask):
            if view.is_partial or not_held_mask is not None or missing_partitions != "error":
                note_not_held(segment, view, ids, found_mask, missing_partitions, not_held_mask)
            return out, found_mask


def _assemble_few(plan: _Plan, entity_ids: list[Any], out: Float32s) -> int:
    """Fill rows one by one, until one needs :func:`_assemble_slowly`; return how many are filled."""
    # The ids are exhausted first: the end of an array is an error of NumPy's, which takes longer than to read a row.
    for number, (entity_id, row) in enumerate(zip(entity_ids, out, strict=False)):
        if type(entity_id) is not str or _assemble_one(plan, entity_id, row) != FOUND:
            return number
    return len(out)


def _assemble_few_at_positions(plan: _Plan, entity_ids: list[Any], out: Float32s, positions: Int64s) -> int:
    """:func:`_assemble_few` that fills ``positions`` too, with the log positions of the rows."""
    plan = _positioned(plan, positions, len(entity_ids))
    for number, (entity_id, row) in enumerate(zip(entity_ids, out, strict=False)):
        if type(entity_id) is not str or _assemble_one(plan, entity_id, row) != FOUND:
            return number
        plan[P_POSITIONS] += 8
    return len(out)


def _positioned(plan: _Plan, positions: Int64s, rows: int) -> _Plan:
    """A plan that also fills ``positions``, which the caller keeps alive."""
    buffers.check_positions(positions, rows)
    plan = plan.copy()
    plan[P_POSITIONS] = pa.py_buffer(positions).address  # NumPy makes several objects to say it.
    return plan
