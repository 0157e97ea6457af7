"""The caller's id of a request, for the served log. A context variable: threads and tasks do not see each other's."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from quorin.offline import check_request_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.http import Headers

_CURRENT: ContextVar[str] = ContextVar("feast_quorin_request_id", default="")

current = _CURRENT.get
"""The id of the request that is answered, empty without."""


@contextmanager
def request_id(text: str) -> Iterator[None]:
    """The served log has this id of the requests in a ``with`` block, by which labels find them later.

    :raises ValueError: unless it is a text of 1 to 128 printable ASCII characters.
    """
    before = _CURRENT.set(check_request_id(text))
    try:
        yield
    finally:
        _CURRENT.reset(before)


@contextmanager
def of_headers(headers: Headers) -> Iterator[None]:
    """The id that a request over HTTP has: ``X-Request-Id``, else the trace of ``traceparent``, else none."""
    before = _CURRENT.set(_found(headers))
    try:
        yield
    finally:
        _CURRENT.reset(before)


def _found(headers: Headers) -> str:
    trace = ""
    for name, value in headers:
        if name == b"x-request-id":
            try:
                return check_request_id(value.decode("latin-1"))
            except ValueError:
                return ""
        if name == b"traceparent" and value.count(b"-") >= 3:
            trace = value.split(b"-")[1].decode("latin-1")
    return trace if len(trace) == 32 and trace.isascii() and trace.isalnum() else ""
