"""A server that answers with what it got: POST /direct the short way, everything else through ASGI. A body that begins
with "later" is answered when a moment has passed, one that begins with "hold" when the process gets SIGUSR1; a line in
the log says that it is held. "remember" sets a context variable, and "recall" answers its value.

The arguments are the port, the number of workers, and then the private key and the certificate, or none. GET /spans
answers the spans that OpenTelemetry has recorded, one for each of the other requests, if ``WITH_SPANS`` is set.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from quorin.http import Address, Headers, Limits, Pending, Reply, run

BEARER = "correct-horse"
LIMITS = Limits(
    head_bytes=4096,
    body_bytes=100_000,
    request_seconds=float(os.environ.get("REQUEST_SECONDS", "3")),
    idle_seconds=2,
    connections=int(os.environ.get("CONNECTIONS", "1000")),
)


HELD = "a request is held"
_REMEMBERED: ContextVar[str] = ContextVar("remembered", default="nothing")


class Echo:
    """An application with the attributes that the protocol needs."""

    limits = LIMITS
    paths = ("/other", "/raise")
    token = BEARER.encode() if os.environ.get("WITH_AUTHENTICATION") else None

    def __init__(self) -> None:
        self.direct = {b"/direct": self._direct}
        self._released = asyncio.Event()
        self._spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self._tracer = trace.get_tracer(__name__, tracer_provider=provider if os.environ.get("WITH_SPANS") else None)

    def _direct(self, body: bytes, _: Headers) -> Reply | Pending | None:
        if body.startswith((b"later", b"hold")):
            return self._later(body)
        if body == b"not here":
            return None
        if body == b"pid":
            return Reply(200, b"text/plain", str(os.getpid()).encode())
        if body == b"slow":
            time.sleep(0.5)
        with self._tracer.start_as_current_span("direct"):
            return Reply(200, b"text/plain", b"direct:" + body, rows=3, features=2)

    async def _later(self, body: bytes) -> Reply | None:
        if body.startswith(b"hold"):
            await self._hold()
        else:
            await asyncio.sleep(0.5)
        if body.endswith(b"remember"):
            _REMEMBERED.set("the request before")
        if body.endswith(b"not here"):
            return None
        if body == b"later, raise":
            raise ValueError("as asked")
        with self._tracer.start_as_current_span("later"):
            return Reply(200, b"text/plain", b"direct:" + body, rows=3, features=2)

    async def _hold(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._released.set)
        sys.stdout.write(f"{HELD}\n")
        sys.stdout.flush()
        await self._released.wait()

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
        if body == b"remember":
            _REMEMBERED.set("the request before")
        if body == b"recall":
            answer += b":" + _REMEMBERED.get().encode()
        if scope["path"] == "/spans":
            answer = ("[" + ",".join(span.to_json() for span in self._spans.get_finished_spans()) + "]").encode()
        elif scope["path"] == "/raise" and os.environ.get("WITH_ERRORS"):
            raise ValueError("as asked")
        else:
            self._tracer.start_span("asgi").end()
        while body == b"wait" and (await receive())["type"] != "http.disconnect":
            pass
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def main() -> None:
    port, workers, *tls = sys.argv[1:]
    key, cert = map(Path, tls) if tls else (None, None)
    address = Address(
        port=int(port),
        workers=int(workers),
        tls_key=key,
        tls_cert=cert,
        access_log=bool(os.environ.get("WITH_ACCESS_LOG")),
        limits=LIMITS,
    )
    run(Echo, address)


if __name__ == "__main__":
    main()
