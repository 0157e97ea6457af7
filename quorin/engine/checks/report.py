"""What checks found, as values, as JSON and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quorin import metrics
from quorin.errors import CheckFailedError

if TYPE_CHECKING:
    from quorin.engine.checks.declared import Check
    from quorin.engine.checks.measure import Example


@dataclass(frozen=True, slots=True)
class Result:
    """One check: what was found, what is allowed (as text), the figure of the generation that is served (None: none is,
    or it does not matter), and examples, each an entity id and its value.

    ``note`` says why a check that could not be made passed.
    """

    check: Check
    passed: bool
    found: float | None
    allowed: str
    served: float | None = None
    examples: tuple[Example, ...] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **self.check.as_dict(),
            "passed": self.passed,
            "found": self.found,
            "allowed": self.allowed,
            "served": self.served,
            "examples": [{"entity_id": entity_id, "value": value} for entity_id, value in self.examples],
            "note": self.note,
        }

    def __str__(self) -> str:
        if self.note:
            return f"{self.check}: not checked, {self.note}"
        served = "" if self.served is None else f", served {figure(self.served)}"
        shown = ", ".join(f"{entity_id!r}: {example_value(value)}" for entity_id, value in self.examples)
        return f"{self.check}: found {figure(self.found)}, allowed {self.allowed}{served}" + (
            f"; for example {shown}" if shown and not self.passed else ""
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all checks of one schema."""

    schema_name: str
    rows: int
    served_rows: int
    results: tuple[Result, ...]

    @property
    def failures(self) -> tuple[Result, ...]:
        """The results of checks that failed."""
        return tuple(result for result in self.results if not result.passed)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def raise_if_failed(self) -> None:
        """Count failures in ``quorin_checks_failed_total`` and raise.

        :raises CheckFailedError: with the text of each failure, if there are any.
        """
        if self.passed:
            return
        for result in self.failures:
            metrics.checks_failed.labels(self.schema_name, result.check.kind).inc()
        raise CheckFailedError(self.schema_name, [str(result) for result in self.failures])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "schema": self.schema_name,
            "passed": self.passed,
            "rows": self.rows,
            "served_rows": self.served_rows,
            "checks": [result.as_dict() for result in self.results],
        }


def figure(number: float | None) -> str:
    """A number of a report: whole ones in full, others with five digits."""
    if number is None:
        return "none"
    if math.isfinite(number) and number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:.5g}"


def example_value(value: Any) -> str:
    """The value of an example as text."""
    return "null" if value is None else figure(value) if isinstance(value, (int, float)) else str(value)
