"""What requests ask for by headers, and the header by which writes return their token.

``Quorin-At-Least``, ``Quorin-Timeout-Ms``, ``Quorin-Max-Age``, ``Quorin-Consistent`` and ``Quorin-Pin`` hold for every
read of a request, whichever way it is answered.
``Quorin-Token`` is in the answer to every request that wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_quorin.read.options import reading_with
from feast_quorin.remote.messages import BadMessageError, asked_for
from feast_quorin.write.tokens import collecting
from quorin.errors import GenerationNotFoundError, InvalidPinError, NotYetAppliedError, PinLimitError, TokenError
from quorin.http import InvalidHeaderError, error_reply, options_of, send_reply, too_old

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quorin.http import Reply

TOKEN = b"quorin-token"


async def with_headers(answer: Callable[[Any, Any, Any], Awaitable[None]], scope: Any, receive: Any, send: Any) -> None:
    """Answer a request as its headers ask, and with the token of what it wrote."""
    try:
        asked, changes = options_of(scope["headers"]), asked_for(scope["headers"])
    except (InvalidHeaderError, BadMessageError) as error:
        await send_reply(send, error_reply(422, str(error)))
        return
    with collecting() as written, reading_with(at_least=asked.at_least, timeout_ms=asked.timeout_ms, **changes):

        async def send_with_token(message: Any) -> None:
            if message["type"] == "http.response.start" and written.token is not None:
                message = {**message, "headers": [*message["headers"], (TOKEN, written.token.text.encode())]}
            await send(message)

        await answer(scope, receive, send_with_token)


def refuses_as_here(app: Any) -> None:
    """Have Feast's application refuse as this server does: reads whose token this machine does not show, and pins."""
    from starlette.responses import Response

    def handler(reply_to: Callable[[Any], Reply]) -> Callable[[Any, Any], Awaitable[Response]]:
        async def refused(_: Any, error: Any) -> Response:
            reply = reply_to(error)
            return Response(reply.body, reply.status, media_type=reply.content_type.decode())

        return refused

    replies: dict[type[Exception], Callable[[Any], Reply]] = {NotYetAppliedError: too_old, TokenError: too_old}
    replies |= dict.fromkeys((InvalidPinError, GenerationNotFoundError, PinLimitError), pin_refused)
    for kind, reply_to in replies.items():
        app.add_exception_handler(kind, handler(reply_to))


def pin_refused(error: InvalidPinError | GenerationNotFoundError | PinLimitError) -> Reply:
    """422 for pins that cannot be; 409 for a generation that this machine does not have, or cannot pin."""
    return error_reply(422 if isinstance(error, InvalidPinError) else 409, str(error))
