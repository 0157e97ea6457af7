"""What a comparison found, as numbers, JSON and text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from quorin.engine.skew.kinds import APART, DIFFERENT, SKEWED
from quorin.engine.skew.page import skew_page


@dataclass(frozen=True)
class SkewExample:
    """One value that is not what it should be; times are None where a side has no row."""

    entity_id: str
    kind: str
    served: Any
    offline: Any
    served_time_ns: int | None
    offline_time_ns: int | None


@dataclass(frozen=True)
class FieldSkew:
    """How many values of one field are wrong, by the kind of their row, with examples of each kind."""

    name: str
    counts: dict[str, int]
    examples: list[SkewExample]

    @property
    def skewed(self) -> int:
        """How many values are wrong."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class SkewReport:
    """What a comparison of one schema or view found.

    ``rows`` counts the entities by kind: ``equal``, ``different``, ``stale``, ``missing``, ``extra``, ``expired``, and,
    set apart, ``newer`` and ``changed``. In a row of any kind, a value of :attr:`fields` counts as wrong where it
    differs from the offline one; a null equals a row that is not there. ``staleness_seconds`` has quantiles over the
    stale rows, None without any. ``seconds`` are those of the steps.
    """

    name: str
    as_of_time_ns: int
    rows: dict[str, int]
    fields: list[FieldSkew]
    staleness_seconds: dict[str, float] | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def compared(self) -> int:
        """How many entities were compared, without those that were set apart."""
        return sum(count for state, count in self.rows.items() if state not in APART)

    def exceeded(self, threshold: float = 0.0) -> list[str]:
        """What is over a threshold, a share of the compared entities: kinds of rows, and fields with wrong values."""
        most = threshold * self.compared
        kinds = [kind for kind in SKEWED if kind != DIFFERENT and self.rows[kind] > most]
        return kinds + [one.name for one in self.fields if one.skewed > most]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it; examples keep their values, which may be bytes, or floats that are not finite."""
        return {
            "name": self.name,
            "as_of_time_ns": self.as_of_time_ns,
            "compared": self.compared,
            "rows": dict(self.rows),
            "staleness_seconds": self.staleness_seconds,
            "fields": [
                {
                    "name": one.name,
                    "skewed": one.skewed,
                    "share": one.skewed / self.compared if self.compared else 0.0,
                    **one.counts,
                    "examples": [dict(vars(example)) for example in one.examples],
                }
                for one in self.fields
            ],
            "seconds": self.seconds,
        }

    def to_html(self) -> str:
        """The report as one page; see :func:`skew_page`."""
        return skew_page([self.to_dict()])
