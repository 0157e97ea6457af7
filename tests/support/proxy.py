"""One address for servers that change, as a proxy, a virtual IP or a service of Kubernetes is."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path


class Proxy:
    """Forwards TCP connections to the unix socket that ``target`` names when they begin; they keep it to their end."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self.target))
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=_forward, args=(source, sink), daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


class Wire:
    """Forwards TCP connections to a port of this machine, and does to the bytes that come back what a network may:
    ``damages`` is the offset of a byte that is changed, ``ends`` where the connection ends, ``stalls`` where nothing
    more comes until the server ends; ``when_stalled`` is called then.
    """

    def __init__(self, port: int) -> None:
        self.damages: int | None = None
        self.ends: int | None = None
        self.stalls: int | None = None
        self.when_stalled: Callable[[], None] = lambda: None
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no connection more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=_forward, args=(client, server), daemon=True).start()
                threading.Thread(target=self._back, args=(server, client), daemon=True).start()

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        offset = 0
        with contextlib.suppress(OSError), server, client:
            while data := bytearray(server.recv(65536)):
                if self.damages is not None and offset <= self.damages < offset + len(data):
                    data[self.damages - offset] ^= 0x10
                cut = self.ends if self.stalls is None else self.stalls
                client.sendall(data if cut is None else data[: max(0, cut - offset)])
                offset += len(data)
                if cut is not None and offset >= cut:
                    break
            if self.stalls is not None:
                self.when_stalled()
                while server.recv(65536):
                    pass
            client.shutdown(socket.SHUT_RDWR)
