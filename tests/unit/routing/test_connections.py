"""Connections to other servers: all at once, kept, given up in time, and not shared with a forked child."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from quorin.engine.routing.connections import Answered, Connections, Outgoing, UnansweredError
from tests.support.peer_server import PATIENT, Server


def test_connections_are_kept(server: Server, connections: Connections) -> None:
    large = os.urandom(3 << 20)
    for body in (b"a", b"", large, b"b"):
        assert connections.exchange([Outgoing(server.url, "/", body, {})], timeout_seconds=PATIENT) == [
            Answered(200, body)
        ]
    assert server.accepted == 1


def test_a_connection_that_the_server_closed_is_opened_anew(server: Server, connections: Connections) -> None:
    for _ in range(3):
        [answer] = connections.exchange([Outgoing(server.url, "/close", b"x", {})], timeout_seconds=PATIENT)
        assert answer == Answered(200, b"x")
    assert server.accepted == 3


def test_an_answer_that_is_cut_off_is_none(server: Server, connections: Connections) -> None:
    [answer] = connections.exchange([Outgoing(server.url, "/cut", b"x", {})], timeout_seconds=PATIENT)
    assert isinstance(answer, UnansweredError)


def test_a_server_that_hangs_keeps_no_other_from_answering(server: Server, connections: Connections) -> None:
    requests = [Outgoing(server.url, path, path.encode(), {}) for path in ("/hang", "/", "/hang", "/other")]
    answers = connections.exchange(requests, timeout_seconds=0.5)
    assert [str(one) if isinstance(one, UnansweredError) else one.body for one in answers] == [
        "no answer within 500 ms", b"/", "no answer within 500 ms", b"/other",
    ]  # fmt: skip


def test_a_server_that_is_away_is_said_to_be(connections: Connections) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        [answer] = connections.exchange([Outgoing(url, "/", b"secret", {"Authorization": "secret"})], timeout_seconds=9)
    assert str(answer) == "Connection refused"


def test_a_path_in_the_url_goes_before_the_requests(server: Server, connections: Connections) -> None:
    [answer] = connections.exchange([Outgoing(server.url + "/hang/..", "/x", b"y", {})], timeout_seconds=PATIENT)
    assert answer == Answered(200, b"y")


def test_a_forked_child_has_connections_of_its_own(server: Server, connections: Connections) -> None:
    request = Outgoing(server.url, "/", b"x", {})
    assert connections.exchange([request], timeout_seconds=PATIENT) == [Answered(200, b"x")]
    child = os.fork()
    if not child:
        found = connections.exchange([request, request], timeout_seconds=PATIENT)
        os._exit(0 if found == [Answered(200, b"x")] * 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert connections.exchange([request], timeout_seconds=PATIENT) == [Answered(200, b"x")]
    assert server.accepted == 3


def test_a_request_is_one_packet(connections: Connections) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        request = Outgoing(f"http://127.0.0.1:{listening.getsockname()[1]}", "/", b"body", {})
        asking = threading.Thread(target=connections.exchange, args=([request],), kwargs={"timeout_seconds": PATIENT})
        asking.start()
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.recv(1 << 16).endswith(b"\r\n\r\nbody")
        asking.join()


def test_idle_connections_of_servers_that_nobody_asks_are_closed(
    server: Server, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorin.engine.routing.connections._IDLE_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        request = Outgoing(f"http://127.0.0.1:{gone.getsockname()[1]}", "/", b"", {})
        asking = threading.Thread(target=connections.exchange, args=([request],), kwargs={"timeout_seconds": PATIENT})
        asking.start()
        accepted, _ = gone.accept()
        with accepted:
            accepted.settimeout(PATIENT)
            while not accepted.recv(1 << 16).endswith(b"\r\n\r\n"):
                pass
            accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            asking.join()
            other = Outgoing(server.url, "/", b"x", {})
            assert connections.exchange([other], timeout_seconds=PATIENT) == [Answered(200, b"x")]
            assert accepted.recv(1) == b""


@pytest.mark.parametrize("url", ["http://a:99999", "http://a:b", f"http://{'a' * 70}.b", "http://a..b"])
def test_a_url_that_cannot_be_asked_keeps_no_other_from_answering(
    server: Server, connections: Connections, url: str
) -> None:
    requests = [Outgoing(url, "/", b"x", {}), Outgoing(server.url, "/", b"y", {})]
    wrong, right = connections.exchange(requests, timeout_seconds=PATIENT)
    assert (str(wrong), right) == ("not a URL that can be asked", Answered(200, b"y"))


def test_a_name_that_is_looked_up_for_long_is_given_up(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        found.wait(PATIENT)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    [answer] = connections.exchange([Outgoing("http://slow", "/", b"x", {})], timeout_seconds=0.1)
    found.set()
    assert str(answer) == "no answer within 100 ms"
