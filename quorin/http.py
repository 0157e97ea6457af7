"""Serving over HTTP: uvicorn on uvloop, with a short way for the requests that come most. Needs the extra ``serve``."""

from __future__ import annotations

from quorin.engine.http.limits import Limits
from quorin.engine.http.reply import Direct, Headers, Reply, error_reply
from quorin.engine.http.run import Address, run
from quorin.engine.ops.readiness import Readiness, readiness

__all__ = ["Address", "Direct", "Headers", "Limits", "Readiness", "Reply", "error_reply", "readiness", "run"]
