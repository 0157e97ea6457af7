"""A server of another node, as far as connections see it."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PATIENT = 60.0


class Server(ThreadingHTTPServer):
    """Answers a POST with its body; counts connections and answers; ``/hang`` waits for the end of the test. With a
    certificate and its key, over TLS.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.accepted = self.answered = 0
        self.ended = threading.Event()
        self.url = f"http{'' if certificate is None else 's'}://127.0.0.1:{self.server_port}"

    def verify_request(self, *_: object) -> bool:
        self.accepted += 1
        return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/hang":
            self.server.ended.wait(PATIENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 1 if self.path == "/cut" else len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.answered += 1
        self.close_connection = self.path in ("/close", "/cut")  # Without saying so.

    def log_message(self, *_: object) -> None:
        pass
