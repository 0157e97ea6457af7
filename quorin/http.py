"""Serving over HTTP: uvicorn on uvloop, with a short way for the requests that come most. Needs the extra ``serve``.

:class:`SegmentServer` serves the segments of a connection; ``run`` runs it, or another application.
"""

from __future__ import annotations

from quorin.errors import needs_extra

with needs_extra("serve"):
    from quorin.engine.http.arrow_stream import InvalidStreamError, read_stream
    from quorin.engine.http.asgi import receive_body, send_reply
    from quorin.engine.http.catalogue import Catalogue
    from quorin.engine.http.donor import Donor
    from quorin.engine.http.limits import Limits
    from quorin.engine.http.options import InvalidHeaderError, RequestOptions, may_wait, options_of, too_old
    from quorin.engine.http.page import page
    from quorin.engine.http.reply import Direct, Headers, Pending, Reply, error_reply, forms
    from quorin.engine.http.rows import SegmentRows, is_forwarded, not_held, of_forwarded
    from quorin.engine.http.run import Address, run
    from quorin.engine.http.segments import SegmentServer
    from quorin.engine.memory.addresses import RegisteredAddress, register_address
    from quorin.engine.ops.readiness import Readiness, readiness

__all__ = [
    "Address",
    "Catalogue",
    "Direct",
    "Donor",
    "Headers",
    "InvalidHeaderError",
    "InvalidStreamError",
    "Limits",
    "Pending",
    "Readiness",
    "RegisteredAddress",
    "Reply",
    "RequestOptions",
    "SegmentRows",
    "SegmentServer",
    "error_reply",
    "forms",
    "is_forwarded",
    "may_wait",
    "not_held",
    "of_forwarded",
    "options_of",
    "page",
    "read_stream",
    "readiness",
    "receive_body",
    "register_address",
    "run",
    "send_reply",
    "too_old",
]
