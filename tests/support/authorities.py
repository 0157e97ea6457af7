"""Who Feast's authentication asks: a Kubernetes API server and an OpenID provider, as real servers over HTTP."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.http import make_certificate

KEY_ID = "first"
_SECRET = "the API server knows its tokens by heart, nobody verifies this signature"  # noqa: S105


class Authority:
    """Answers requests with what :meth:`answer` returns, and counts them by what they ask for."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: Counter[str] = Counter()
        self.is_away = False
        self.delay_seconds = 0.0

    def answer(self, path: str, body: Any) -> Any:
        raise NotImplementedError

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", "0")))
        self.asked[handler.path.split("?")[0].rpartition("/")[2]] += 1
        time.sleep(self.delay_seconds)
        if self.is_away:
            handler.close_connection = True
            return
        found = self.answer(handler.path.split("?")[0], json.loads(body) if body else None)
        text = json.dumps(found).encode()
        handler.send_response(404 if found is None else 200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)


@contextmanager
def running(authority: Authority, certificate: tuple[Path, Path] | None = None) -> Iterator[None]:
    """Serve an authority on a free port, encrypted if there is a certificate with its key."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            authority.handle(self)

        def do_POST(self) -> None:
            authority.handle(self)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    authority.url = f"http{'' if certificate is None else 's'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Kubernetes(Authority):
    """``tokens`` are the authenticated ones with their user names, ``roles`` the role bindings of service accounts."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, str] = {}
        self.roles: dict[str, list[str]] = {}

    def account(self, name: str, *roles: str, seconds: float = 3600) -> str:
        """The token of a service account of the namespace ``ml`` with roles."""
        self.roles[name] = list(roles)
        user = f"system:serviceaccount:ml:{name}"
        token = jwt.encode({"sub": user, "exp": time.time() + seconds}, _SECRET, "HS256")
        self.tokens[token] = user
        return token

    def answer(self, path: str, body: Any) -> Any:
        if path.endswith("/tokenreviews"):
            user = self.tokens.get(body["spec"]["token"])
            status = {"authenticated": user is not None, "user": {"username": user or "", "groups": []}}
            return {**body, "status": status}
        if path.endswith("/rolebindings"):
            return {"items": [_binding(account, role) for account, roles in self.roles.items() for role in roles]}
        return {"items": []} if path.endswith("/clusterrolebindings") else None


def _binding(account: str, role: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{account}-{role}", "namespace": "ml"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "ml"}],
    }


@contextmanager
def kubernetes(folder: Path) -> Iterator[tuple[Kubernetes, dict[str, str]]]:
    """An API server, and the environment of a pod of its cluster for :mod:`tests.support.in_cluster`."""
    certificate, key = make_certificate(folder)
    (folder / "ca.crt").write_bytes(certificate.read_bytes())
    (folder / "token").write_text("the token of the server itself")
    (folder / "namespace").write_text("ml")
    api = Kubernetes()
    with running(api, (certificate, key)):
        port = api.url.rpartition(":")[2]
        host = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
        yield api, {**host, "SERVICE_ACCOUNT": str(folder)}


class OpenId(Authority):
    """An OpenID provider with one key."""

    def __init__(self) -> None:
        super().__init__()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, user: str, *roles: str, seconds: float = 3600, key_id: str = KEY_ID, key: Any = None) -> str:
        """A signed token of a user with roles of the client ``feast``."""
        access = {"feast": {"roles": list(roles)}}
        claims = {"preferred_username": user, "resource_access": access, "exp": time.time() + seconds}
        return jwt.encode(claims, key or self._key, "RS256", headers={"kid": key_id})

    def answer(self, path: str, _: Any) -> Any:
        if path.endswith("/openid-configuration"):
            names = "token_endpoint", "authorization_endpoint"
            return {**{name: f"{self.url}/{name}" for name in names}, "jwks_uri": f"{self.url}/jwks"}
        if path == "/jwks":
            public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
            return {"keys": [{**public, "kid": KEY_ID, "use": "sig", "alg": "RS256"}]}
        return None
