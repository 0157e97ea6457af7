"""Whether a node may serve: it has a segment of every schema, and each is known to be fresh."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorin.errors import ConnectionFailedError, QuorinError

if TYPE_CHECKING:
    from quorin.shm import SegmentRegistry


@dataclass(frozen=True, slots=True)
class Readiness:
    """One schema on a node: how long ago its segment was known to be up to date (s; infinity if never), and what keeps
    it from being ready, or "".
    """

    schema_name: str
    lag_seconds: float
    problem: str

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON; an unknown lag is None."""
        lag = None if math.isinf(self.lag_seconds) else self.lag_seconds
        return {"schema": self.schema_name, "lag_seconds": lag, "ready": not self.problem, "problem": self.problem}


def readiness(
    registry: SegmentRegistry, *, max_lag_seconds: float | None, names: Collection[str] = ()
) -> list[Readiness]:
    """The readiness of each of the schemas ``names``, if any, else of the deployment's (see ``schema_names``).

    Without ``max_lag_seconds`` a segment need not be fresh.

    :raises ConnectionFailedError: if the control plane is away, and the node has never met the deployment.
    """
    return [_readiness(registry, name, max_lag_seconds) for name in sorted(names or schema_names(registry))]


def schema_names(registry: SegmentRegistry) -> set[str]:
    """The deployment's schemas; while the control plane is away, those that the node has segments of.

    :raises ConnectionFailedError: if the control plane is away, and the node has never met the deployment.
    """
    names = set(registry.node.currents())
    try:
        return set(registry.backend.control.schemas())
    except ConnectionFailedError:
        if not registry.node.is_known:
            raise
        return names


def _readiness(registry: SegmentRegistry, name: str, max_lag_seconds: float | None) -> Readiness:
    try:
        with registry.open_stored(name) as segment:
            lag = segment.confirmed_age_seconds()
    except QuorinError as error:
        return Readiness(name, math.inf, str(error))
    if max_lag_seconds is None or lag <= max_lag_seconds:
        return Readiness(name, lag, "")
    known = "it was never known to be up to date" if math.isinf(lag) else f"last known to be up to date {lag:.1f} s ago"
    return Readiness(name, lag, f"{known}, expected at most {max_lag_seconds:g} s")
