"""A server that answers with what it got: POST /direct the short way, everything else through ASGI.

The arguments are the port, the number of workers, and then the private key and the certificate, or none.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from quorin.http import Address, Headers, Limits, Reply, run

BEARER = "correct-horse"
LIMITS = Limits(head_bytes=4096, body_bytes=100_000, request_seconds=3.0, idle_seconds=2)


class Echo:
    """An application with the attributes that the protocol needs."""

    limits = LIMITS
    token = BEARER.encode() if os.environ.get("WITH_AUTHENTICATION") else None

    def __init__(self) -> None:
        self.direct = {b"/direct": self._direct}

    @staticmethod
    def _direct(body: bytes, _: Headers) -> Reply | None:
        if body == b"not here":
            return None
        if body == b"pid":
            return Reply(200, b"text/plain", str(os.getpid()).encode())
        if body == b"slow":
            time.sleep(0.5)
        return Reply(200, b"text/plain", b"direct:" + body)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        answer = b"asgi:" + body
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def main() -> None:
    port, workers, *tls = sys.argv[1:]
    key, cert = map(Path, tls) if tls else (None, None)
    run(Echo, Address(port=int(port), workers=int(workers), tls_key=key, tls_cert=cert, limits=LIMITS))


if __name__ == "__main__":
    main()
