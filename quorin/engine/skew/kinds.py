"""What a row can be when both sides are compared."""

from __future__ import annotations

EQUAL, DIFFERENT, STALE, MISSING, EXTRA, EXPIRED = "equal", "different", "stale", "missing", "extra", "expired"
NEWER, CHANGED = "newer", "changed"
SKEWED = (DIFFERENT, STALE, MISSING, EXTRA, EXPIRED)
APART = (NEWER, CHANGED)
STATES = (EQUAL, *SKEWED, *APART)
MEANINGS = {
    EQUAL: "the same event, with the same values",
    DIFFERENT: "the same event, with other values",
    STALE: "the offline source has a newer event",
    MISSING: "only the offline source has the entity",
    EXTRA: "only the served side has the entity",
    EXPIRED: "served although older than the TTL of the view",
    NEWER: "newer than the offline source can have yet: no skew",
    CHANGED: "written during the comparison: no skew",
}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
