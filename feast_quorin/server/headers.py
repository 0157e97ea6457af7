"""What requests ask for by headers, and the header by which writes return their token.

``Quorin-At-Least``, ``Quorin-Timeout-Ms``, ``Quorin-Max-Age`` and ``Quorin-Consistent`` hold for every read of a
request, whichever way it is answered.
``Quorin-Token`` is in the answer to every request that wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_quorin.read.asked import asking
from feast_quorin.remote.messages import BadMessageError, asked_for
from feast_quorin.write.tokens import collecting
from quorin.errors import NotYetAppliedError, TokenError
from quorin.http import InvalidHeaderError, asked_by, error_reply, send_reply, too_old

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TOKEN = b"quorin-token"


async def with_headers(answer: Callable[[Any, Any, Any], Awaitable[None]], scope: Any, receive: Any, send: Any) -> None:
    """Answer a request as its headers ask, and with the token of what it wrote."""
    try:
        asked, changes = asked_by(scope["headers"]), asked_for(scope["headers"])
    except (InvalidHeaderError, BadMessageError) as error:
        await send_reply(send, error_reply(422, str(error)))
        return
    with collecting() as written, asking(at_least=asked.at_least, timeout_ms=asked.timeout_ms, **changes):

        async def send_with_token(message: Any) -> None:
            if message["type"] == "http.response.start" and written.token is not None:
                message = {**message, "headers": [*message["headers"], (TOKEN, written.token.text.encode())]}
            await send(message)

        await answer(scope, receive, send_with_token)


def answers_too_old(app: Any) -> None:
    """Have Feast's application refuse reads whose token this machine does not show as this server does."""
    from starlette.responses import Response

    async def refused(_: Any, error: Any) -> Response:
        reply = too_old(error)
        return Response(reply.body, reply.status, media_type=reply.content_type.decode())

    for kind in (NotYetAppliedError, TokenError):
        app.add_exception_handler(kind, refused)
