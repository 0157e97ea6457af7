"""How old values may be to be read: ``max_age`` as callers pass it, and as a number of ns for each field.

A value is over its limit if its row's event time is before *now* minus the limit. *Now* is the system's clock, looked
at once for each call that reads. An event time in the future is within any limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from quorin.engine.memory.plans import vector_plan
from quorin.errors import InvalidMaxAgeError

if TYPE_CHECKING:
    from quorin.engine.arrays import Int64s
    from quorin.engine.memory.view import SegmentView
    from quorin.schema import FeatureField

Duration = int | float | timedelta
MaxAge = Duration | Mapping[str, Duration]
"""A limit for all fields, or for some by their names: seconds, or a ``timedelta``."""

_MAX_NS = 2**63 - 1
_MAX_PLANS = 64


def duration_ns(where: str, value: Any) -> int:
    """A duration in ns. :raises InvalidMaxAgeError: naming ``where``, the value and what is expected."""
    ns = 0
    if isinstance(value, timedelta):
        ns = (value.days * 86_400 + value.seconds) * 1_000_000_000 + value.microseconds * 1000
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NS:
        ns = round(value * 1e9) if isinstance(value, float) else value * 1_000_000_000
    if not 0 < ns <= _MAX_NS:
        raise InvalidMaxAgeError(
            f"{where}: expected a timedelta, or a number of seconds, above 0 and up to 292 years, got {value!r}"
        )
    return ns


def age_limits(max_age: MaxAge | None, fields: Sequence[FeatureField], schema_name: str) -> tuple[int, ...] | None:
    """The limit of each field in ns, 0 for none; None if no field has one. ``fields`` are those that are read.

    :raises InvalidMaxAgeError: for anything else than durations above 0, and for names that no field has.
    """
    if max_age is None:
        return None
    if not isinstance(max_age, Mapping):
        return (duration_ns("max_age", max_age),) * len(fields)
    unknown = [name for name in max_age if name not in {field.name for field in fields}]
    if unknown:
        names = [field.name for field in fields]
        raise InvalidMaxAgeError(f"max_age: {schema_name} reads no fields {unknown}; it reads {names}")
    limits = {name: duration_ns(f"max_age[{name!r}]", value) for name, value in max_age.items()}
    ages = tuple(limits.get(field.name, 0) for field in fields)
    return ages if any(ages) else None


def aged_vector_plan(view: SegmentView, max_age: MaxAge) -> Int64s:
    """The plan of a view's whole vector, with age limits; cached in the view.

    :raises InvalidMaxAgeError: as :func:`age_limits`.
    """
    kind = type(max_age)
    if kind is int or kind is float or kind is timedelta:
        key: Any = max_age
    else:  # A number of another kind may be equal to one of these, and refused.
        key = (kind, repr(max_age))
    plan: Int64s | None = view.aged_plans.get(key)
    if plan is None:
        fields = view.schema.fields
        limits = age_limits(max_age, fields, view.schema.__name__)
        if len(view.aged_plans) >= _MAX_PLANS:
            view.aged_plans.clear()
        plan = view.aged_plans[key] = vector_plan(view.descriptor, view.stored, fields, limits)
    return plan
