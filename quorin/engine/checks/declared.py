"""What a new generation must hold before it is served. Public as :mod:`quorin.schema`.

A check is a frozen value, so it can be declared beside a schema, kept as JSON, and compared. It says what is allowed;
:func:`quorin.engine.checks.run.run` measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, MISSING, dataclass, fields, replace
from typing import Any, ClassVar

from quorin.engine.format.field import FeatureField, dtype
from quorin.engine.words import seconds_of
from quorin.errors import SchemaError, SchemaTypeError


class Check:
    """The base of all checks. ``kind`` is its name in files, reports and metrics."""

    kind: ClassVar[str]
    needs_numbers: ClassVar[bool] = True

    @property
    def field_name(self) -> str | None:
        """The field that it is about; None for a check of the whole generation."""
        return getattr(self, "field", None)

    def as_dict(self) -> dict[str, Any]:
        """As it is in a file: ``check``, and the arguments that differ from their defaults."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}  # type: ignore[arg-type]
        return {"check": self.kind} | {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    def of_field(self, name: str) -> Check:
        """The same check of another field."""
        return self if self.field_name is None else replace(self, field=name)  # type: ignore[type-var]

    def __str__(self) -> str:
        return self.kind if self.field_name is None else f"{self.kind} of {self.field_name!r}"


@dataclass(frozen=True, repr=True)
class RowCount(Check):
    """How many rows there are: ``at_least`` and ``at_most`` as numbers, ``min_share`` and ``max_share`` as a multiple
    of the rows that are served.
    """

    kind = "row_count"
    _: KW_ONLY
    min_share: float | None = None
    max_share: float | None = None
    at_least: int | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "min_share", "max_share", "at_least", "at_most", least=0)
        _check_any(self, "min_share", "max_share", "at_least", "at_most")
        _check_order(self, "min_share", "max_share")
        _check_order(self, "at_least", "at_most")


@dataclass(frozen=True, repr=True)
class NullShare(Check):
    """The share of rows in which a field is null or NaN, from 0 to 1."""

    kind = "null_share"
    needs_numbers = False
    field: str
    _: KW_ONLY
    at_most: float

    def __post_init__(self) -> None:
        _check_numbers(self, "at_most", least=0, most=1)


@dataclass(frozen=True, repr=True)
class Range(Check):
    """Numbers from ``low`` to ``high``, both included, in all rows but a share of ``at_most``. Of arrays and lists
    every element counts. A null or NaN is not out of range; :class:`NullShare` is for those.
    """

    kind = "range"
    field: str
    _: KW_ONLY
    low: float | None = None
    high: float | None = None
    at_most: float = 0.0

    def __post_init__(self) -> None:
        _check_numbers(self, "low", "high")
        _check_any(self, "low", "high")
        _check_order(self, "low", "high")
        _check_numbers(self, "at_most", least=0, most=1)


@dataclass(frozen=True, repr=True)
class MeanDrift(Check):
    """How far the mean may be from the mean that is served, in standard deviations of what is served."""

    kind = "mean_drift"
    field: str
    _: KW_ONLY
    at_most: float

    def __post_init__(self) -> None:
        _check_numbers(self, "at_most", least=0)


@dataclass(frozen=True, repr=True)
class QuantileDrift(Check):
    """How far each of some quantiles may be from the one that is served, in standard deviations of what is served.

    Quantiles of up to 2²⁰ values are exact. Those of more are of a random sample of 2²⁰: with a probability of 99.99 %
    the rank that is found is within 0.002 of the one that is named.
    """

    kind = "quantile_drift"
    field: str
    _: KW_ONLY
    quantiles: tuple[float, ...] = (0.01, 0.5, 0.99)
    at_most: float

    def __post_init__(self) -> None:
        _check_numbers(self, "at_most", least=0)
        quantiles = self.quantiles
        if not isinstance(quantiles, (tuple, list)) or not quantiles:
            raise SchemaTypeError(f"{self}: quantiles must be a tuple of numbers from 0 to 1, got {quantiles!r}")
        for quantile in quantiles:
            if not _is_number(quantile) or not 0 <= quantile <= 1:
                raise SchemaError(f"{self}: a quantile is a number from 0 to 1, got {quantile!r}")
        object.__setattr__(self, "quantiles", tuple(float(quantile) for quantile in quantiles))


@dataclass(frozen=True, repr=True)
class Freshness(Check):
    """How old the newest event may be, as a duration such as ``"2h"`` or ``"1h30m"``."""

    kind = "freshness"
    _: KW_ONLY
    at_most: str

    def __post_init__(self) -> None:
        if not isinstance(self.at_most, str) or seconds_of(self.at_most) is None:
            raise SchemaError(
                f"{self}: at_most must be a duration such as '500ms', '2h' or '1h30m', got {self.at_most!r}"
            )

    @property
    def seconds(self) -> float:
        """The age in seconds."""
        return seconds_of(self.at_most) or 0.0


KINDS: dict[str, type[Check]] = {
    kind.kind: kind for kind in (RowCount, NullShare, Range, MeanDrift, QuantileDrift, Freshness)
}


def check_checks(schema_name: str, checks: object, schema_fields: Iterable[FeatureField]) -> tuple[Check, ...]:
    """The checks of a schema as a tuple.

    :raises SchemaError: for a field that the schema lacks, or that is not of numbers where numbers are checked.
    :raises SchemaTypeError: for anything that is no check.
    """
    if not isinstance(checks, (list, tuple)):
        raise SchemaTypeError(f"schema {schema_name!r}: checks must be a list, got {checks!r}")
    by_name = {field.name: field for field in schema_fields}
    for check in checks:
        if not isinstance(check, Check):
            raise SchemaTypeError(f"schema {schema_name!r}: checks must hold {', '.join(_CLASSES)}, got {check!r}")
        if problem := misfit(check, by_name):
            raise SchemaError(f"schema {schema_name!r}: {problem}")
    return tuple(checks)


def misfit(check: Check, by_name: dict[str, FeatureField]) -> str:
    """Why a check does not fit a schema's fields, or ""."""
    if check.field_name is None:
        return ""
    field = by_name.get(check.field_name)
    if field is None:
        return f"{check}: there is no such field; there are {', '.join(by_name)}"
    if check.needs_numbers and field.dtype in (dtype.string, dtype.bytes):
        return f"{check}: expected a field of numbers, it is of {field.dtype.name}"
    return ""


def checks_to_json(checks: Sequence[Check]) -> str:
    """Checks as JSON, as :func:`checks_from_values` takes it when it is parsed."""
    return json.dumps([check.as_dict() for check in checks], ensure_ascii=False, separators=(",", ":"))


def checks_from_json(text: str) -> tuple[Check, ...]:
    """The checks that :func:`checks_to_json` wrote. :raises SchemaError: for other text."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise SchemaError(f"checks are not JSON ({error}): {text[:200]!r}") from error
    return checks_from_values(values)


def checks_from_values(values: Any) -> tuple[Check, ...]:
    """Checks from parsed JSON or YAML: a list of objects, each with ``check`` and its arguments, or an object that has
    such a list as ``checks``.

    :raises SchemaError: that names what is wrong, and what was expected.
    """
    if isinstance(values, dict) and set(values) == {"checks"}:
        values = values["checks"]
    if not isinstance(values, list):
        raise SchemaError(f"expected a list of checks, got {str(values)[:200]!r}")
    return tuple(_check_of(value) for value in values)


def _check_of(value: Any) -> Check:
    kind = KINDS.get(str(value.get("check"))) if isinstance(value, dict) else None
    if kind is None:
        raise SchemaError(f"expected a check of {', '.join(KINDS)}, such as {{'check': 'freshness', …}}; got {value!r}")
    arguments = {name: given for name, given in value.items() if name != "check"}
    known = {one.name: one.default is MISSING for one in fields(kind)}  # type: ignore[arg-type]
    if unknown := [name for name in arguments if name not in known]:
        raise SchemaError(f"{kind.kind}: unknown {', '.join(map(repr, unknown))}; expected {', '.join(known)}")
    if missing := [name for name, is_needed in known.items() if is_needed and name not in arguments]:
        raise SchemaError(f"{kind.kind}: expected {', '.join(missing)} too, got {value!r}")
    if isinstance(arguments.get("quantiles"), list):
        arguments["quantiles"] = tuple(arguments["quantiles"])
    if not isinstance(arguments.get("field", ""), str):
        raise SchemaError(f"{kind.kind}: field must be a name, got {arguments['field']!r}")
    return kind(**arguments)


_CLASSES = [kind.__name__ for kind in KINDS.values()]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _check_numbers(check: Check, *names: str, least: float = -math.inf, most: float = math.inf) -> None:
    for name in names:
        value = getattr(check, name)
        if value is not None and (not _is_number(value) or not least <= value <= most):
            limits = (
                "" if least == -math.inf else f" from {least:g}" if most == math.inf else f" from {least:g} to {most:g}"
            )
            raise SchemaError(f"{check}: {name} must be a number{limits}, got {value!r}")


def _check_any(check: Check, *names: str) -> None:
    if all(getattr(check, name) is None for name in names):
        raise SchemaError(f"{check}: expected at least one of {', '.join(names)}")


def _check_order(check: Check, low: str, high: str) -> None:
    values = getattr(check, low), getattr(check, high)
    if None not in values and values[0] > values[1]:
        raise SchemaError(f"{check}: {low} {values[0]!r} is above {high} {values[1]!r}")
