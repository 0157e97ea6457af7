"""Replies compressed by gzip or zstd, for clients that ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from quorin.engine.http.reply import Reply

if TYPE_CHECKING:
    from quorin.engine.http.reply import Headers

_MIN_BYTES = 16 * 1024
"""Below that, compressing takes longer than sending."""
_CODECS = {"zstd": pa.Codec("zstd", 1), "gzip": pa.Codec("gzip", 1)}


def accepted_encoding(headers: Headers) -> str | None:
    """``zstd`` or ``gzip``, in this order, if the header ``Accept-Encoding`` names it; else None."""
    named = set()
    for name, value in headers:
        if name == b"accept-encoding":
            for part in value.decode("latin-1").lower().split(","):
                encoding, _, quality = part.partition(";")
                if quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
                    named.add(encoding.strip())
    return next((encoding for encoding in _CODECS if encoding in named), None)


def compressed(reply: Reply, encoding: str | None) -> Reply:
    """The reply in an encoding that :func:`accepted_encoding` returned; a short one as it is."""
    if encoding is None or len(reply.body) < _MIN_BYTES:
        return reply
    body = _CODECS[encoding].compress(reply.body, asbytes=True)
    headers = (*reply.headers, (b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding"))
    return Reply(reply.status, reply.content_type, body, headers)
