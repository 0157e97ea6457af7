"""The metrics of one deployment as a page of text, and the server of that page."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from quorin import metrics
from quorin.engine.counting.series import Text, gauge_text
from quorin.engine.ops.gauges import SegmentCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from quorin.engine.ops.observe import Observer

_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Page:
    """The gauges of an observer's deployment, and the counters of its schemas; with ``others`` those of all schemas
    that this user ever counted for on this machine.

    While the control plane is unreachable, the schemas are those that it had before.
    """

    def __init__(self, observer: Observer, *, others: bool = False) -> None:
        self._gauges = SegmentCollector(observer)
        self._others = others
        self._counters = Text()

    def close(self) -> None:
        """Stop observing."""
        self._gauges.close()

    def text(self) -> bytes:
        """The page, observed at this moment."""
        gauges = [gauge_text(gauge) for gauge in (*self._gauges.collect(), metrics.requests_in_flight())]
        counted = metrics.counted(self._gauges.schema_names, others=self._others)
        return "".join([*gauges, *(self._counters.of(family, slots) for family, slots in counted)]).encode()


@contextmanager
def served(page: Page, port: int, address: str) -> Iterator[int]:
    """Serve a page over HTTP inside a ``with`` block, from a thread; the port.

    :raises OSError: if the port is taken, or the address is no address of this machine.
    """

    def answer(_: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        body = page.text()
        start("200 OK", [("Content-Type", _TYPE), ("Content-Length", str(len(body)))])
        return [body]

    server = make_server(address, port, answer, _server_class(address), handler_class=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Scrapes are not logged."""


def _server_class(address: str) -> type[WSGIServer]:
    family = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = family

    return Server
