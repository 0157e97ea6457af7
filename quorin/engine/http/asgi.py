"""ASGI's messages: a whole body received, a whole reply sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quorin.engine.http.reply import Reply


async def receive_body(receive: Any) -> bytes | None:
    """The whole body of a request; None if the client has gone."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def send_reply(send: Any, reply: Reply) -> None:
    """Send a whole reply."""
    length = str(len(reply.body)).encode()
    headers = [(b"content-type", reply.content_type), (b"content-length", length), *reply.headers]
    counts = {"rows": reply.rows, "features": reply.features}
    await send({"type": "http.response.start", "status": reply.status, "headers": headers, **counts})
    await send({"type": "http.response.body", "body": reply.body})


async def live(receive: Any, send: Any) -> None:
    """Answer the messages of a server's life: the application needs no start and no end."""
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})
