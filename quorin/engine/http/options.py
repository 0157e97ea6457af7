"""What the headers of a request ask for: rows as new as a token, and positions; and the refusal of what cannot be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from quorin.engine.http.reply import Reply, has_none_of
from quorin.engine.reads.waiting import wait_for
from quorin.engine.routing.router import FORWARDED as FORWARDED_HEADER
from quorin.engine.routing.router import Waiting
from quorin.errors import NotYetAppliedError, TokenError
from quorin.wal import Token

if TYPE_CHECKING:
    from quorin.engine.http.reply import Headers
    from quorin.shm import Segment

TOKEN, AT_LEAST, TIMEOUT_MS, POSITIONS = b"quorin-token", b"quorin-at-least", b"quorin-timeout-ms", b"quorin-positions"
FORWARDED = FORWARDED_HEADER.encode()
"""Of a request from another node: it is answered from memory only, so that no request goes from node to node."""
DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS = 100, 10_000
_OWN = frozenset((AT_LEAST, TIMEOUT_MS, POSITIONS, FORWARDED))
_WAITING = frozenset((AT_LEAST,))
_NUMBER = re.compile(rb"[0-9]{1,5}")


class InvalidHeaderError(ValueError):
    """A header whose value is wrong; the text names it, and what was expected."""


class RequestOptions(NamedTuple):
    """What a request asks for beside its body."""

    at_least: Token | None = None
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    positions: bool = False
    is_forwarded: bool = False

    @property
    def waiting(self) -> Waiting:
        """What other nodes are to wait for."""
        return Waiting() if self.at_least is None else Waiting(self.at_least.text, self.timeout_ms)

    def wait(self, segment: Segment) -> None:
        """Wait until a segment shows the token.

        :raises NotYetAppliedError, TokenError: as :func:`quorin.assembly.wait_for`.
        """
        if self.at_least is not None:
            wait_for(segment, self.at_least, timeout_ms=self.timeout_ms)


_NOTHING = RequestOptions()


def options_of(headers: Headers) -> RequestOptions:
    """What the headers ask for.

    :raises InvalidHeaderError: for a value that is no token, time or flag.
    """
    if has_none_of(headers, _OWN):
        return _NOTHING
    own = {name: value for name, value in headers if name in _OWN}
    try:
        token = Token.parse(own[AT_LEAST].decode("latin-1")) if AT_LEAST in own else None
    except TokenError as error:
        raise InvalidHeaderError(f"Quorin-At-Least: {error}") from None
    timeout_ms = own.get(TIMEOUT_MS, b"%d" % DEFAULT_TIMEOUT_MS)
    if not _NUMBER.fullmatch(timeout_ms) or int(timeout_ms) > MAX_TIMEOUT_MS:
        shown = timeout_ms[:100].decode("latin-1")
        raise InvalidHeaderError(
            f"Quorin-Timeout-Ms: expected a whole number from 0 to {MAX_TIMEOUT_MS}, got {shown!r}"
        )
    flag = own.get(POSITIONS, b"false").lower()
    if flag not in (b"true", b"false"):
        raise InvalidHeaderError(f"Quorin-Positions: expected true or false, got {flag[:100].decode('latin-1')!r}")
    return RequestOptions(token, int(timeout_ms), flag == b"true", FORWARDED in own)


def may_wait(headers: Headers) -> bool:
    """Whether a request asks for a token: its answer may take as long as its time-out."""
    return not has_none_of(headers, _WAITING)


def too_old(error: NotYetAppliedError | TokenError) -> Reply:
    """The refusal of a request whose token this node does not show: 412, with the name of the error, and for one that
    is not applied yet the position, the one applied and the time-out.
    """
    about: dict[str, Any] = {"detail": str(error), "error": type(error).__name__}
    if isinstance(error, NotYetAppliedError):
        about |= {"schema": error.schema_name, "position": error.position, "applied": error.applied}
        about["timeout_ms"] = error.timeout_ms
    return Reply(412, b"application/json", orjson.dumps(about))
