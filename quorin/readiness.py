"""Whether this machine may serve: what ``quorin ready`` and ``GET /ready`` say."""

from __future__ import annotations

from quorin.engine.ops.readiness import Readiness, readiness

__all__ = ["Readiness", "readiness"]
