"""What the function of a path gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Set
from operator import itemgetter
from typing import Any, NamedTuple

import orjson

Headers = list[tuple[bytes, bytes]]


class Reply(NamedTuple):
    """A whole answer. ``headers`` are those beside its type and length; ``rows`` and ``features`` are those of the
    request, for metrics.
    """

    status: int
    content_type: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    rows: int = 0
    features: int = 0


Pending = Coroutine[Any, Any, Reply | None]
"""An answer that waits for other nodes, in the event loop; None if the application must."""
Direct = Callable[[bytes, Headers], Reply | Pending | None]
"""Answers the body and the headers of a request; None if the application must."""
SHOW_LIFE = "quorin.show_life"
"""In the scope of a request: a function that tells the client, before the head of the answer, that one will come."""


_NAME = itemgetter(0)


def has_none_of(headers: Iterable[tuple[bytes, bytes]], names: Set[bytes]) -> bool:
    """Whether no header has one of these names."""
    return names.isdisjoint(map(_NAME, headers))


def forms(headers: Headers) -> tuple[bytes, bytes]:
    """The type of the body, and the types that the sender takes: of several headers the last, empty without one."""
    content_type = accept = b""
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == b"accept":
            accept = value
    return content_type, accept


def error_reply(status: int, reason: str, *headers: tuple[bytes, bytes]) -> Reply:
    """An error in the form of FastAPI: ``{"detail": reason}``."""
    return Reply(status, b"application/json", orjson.dumps({"detail": reason}), headers)
