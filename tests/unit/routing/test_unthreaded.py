"""Requests to other servers from an event loop: threads only open connections."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.routing.connections import Answered, Connections, Outgoing, UnansweredError
from quorin.engine.routing.unthreaded import exchange
from tests.support.peer_server import PATIENT, Server


async def answered(*arguments: Any) -> list[Answered | UnansweredError]:
    return await exchange(*arguments)


def ask(connections: Connections, server: Server, *paths: str, seconds: float = PATIENT) -> list[str | bytes]:
    requests = [Outgoing(server.url, path, path.encode(), {"X": "y"}) for path in paths]
    answers = asyncio.run(answered(connections, requests, seconds))
    return [str(one) if isinstance(one, UnansweredError) else one.body for one in answers]


def test_a_kept_connection_needs_no_thread(
    server: Server, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(connections, server, "/") == [b"/"]
    large = bytes(3 << 20)
    with monkeypatch.context() as without_threads:
        without_threads.setattr(Connections, "connecting", None)
        assert ask(connections, server, "/again") == [b"/again"]
        request = Outgoing(server.url, "/", large, {})
        assert asyncio.run(answered(connections, [request], PATIENT)) == [Answered(200, large)]
    assert connections.exchange([request], timeout_seconds=PATIENT) == [Answered(200, large)]
    assert server.accepted == 1


def test_requests_are_sent_before_their_answers_are_awaited(server: Server, connections: Connections) -> None:
    assert ask(connections, server, "/") == [b"/"]
    request = Outgoing(server.url, "/", bytes(1 << 16), {})

    async def late() -> bool:
        answers = exchange(connections, [request], PATIENT)
        deadline = time.monotonic() + PATIENT
        while server.answered < 2 and time.monotonic() < deadline:
            time.sleep(0.001)  # The event loop does nothing.
        has_answered = server.answered == 2
        return has_answered and await answers == [Answered(200, request.body)]

    assert asyncio.run(late())


def test_a_request_that_is_given_up_leaves_its_connection(server: Server, connections: Connections) -> None:
    async def given_up() -> None:
        asked = asyncio.ensure_future(exchange(connections, [Outgoing(server.url, "/hang", b"", {})], PATIENT))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    assert ask(connections, server, "/") == [b"/"]
    asyncio.run(given_up())
    assert ask(connections, server, "/again") == [b"/again"]
    assert server.accepted == 2


def test_a_connection_that_the_server_closed_is_opened_anew(server: Server, connections: Connections) -> None:
    for _ in range(3):
        assert ask(connections, server, "/close") == [b"/close"]
    assert server.accepted == 3


def test_a_server_that_hangs_keeps_no_other_from_answering(server: Server, connections: Connections) -> None:
    late = "no answer within 300 ms"
    assert ask(connections, server, "/", "/other") == [b"/", b"/other"]
    assert ask(connections, server, "/hang", "/", seconds=0.3) == [late, b"/"]
    assert ask(connections, server, "/hang", seconds=0.3) == [late]
    assert server.accepted == 2


def test_an_answer_that_is_cut_off_is_none(server: Server, connections: Connections) -> None:
    assert ask(connections, server, "/") == [b"/"]
    [answer] = ask(connections, server, "/cut")
    assert isinstance(answer, str)


def test_over_tls_threads_only_connect_too(
    secure_server: Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(tls_ca=certificate[0])
    assert ask(connections, secure_server, "/") == [b"/"]
    monkeypatch.setattr(Connections, "connecting", None)
    for body in (b"", bytes(3 << 20)):
        request = Outgoing(secure_server.url, "/", body, {})
        assert asyncio.run(answered(connections, [request], PATIENT)) == [Answered(200, body)]
    assert connections.exchange([request], timeout_seconds=PATIENT) == [Answered(200, request.body)]
    assert secure_server.accepted == 1
    connections.close()


def test_servers_that_hang_occupy_no_threads(server: Server, connections: Connections) -> None:
    """More of them than there are threads, on connections that were not kept."""

    async def beside() -> list[Answered | UnansweredError]:
        hanging = [
            asyncio.ensure_future(exchange(connections, [Outgoing(server.url, "/hang", b"", {})], PATIENT))
            for _ in range(40)
        ]
        while server.accepted < len(hanging):
            await asyncio.sleep(0.001)
        found = await exchange(connections, [Outgoing(server.url, "/", b"x", {})], PATIENT)
        for one in hanging:
            one.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        return found

    assert asyncio.run(beside()) == [Answered(200, b"x")]


def test_a_connection_that_opens_too_late_is_given_up(
    server: Server, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, found, real = threading.Event(), threading.Event(), socket.getaddrinfo

    def look_up(*arguments: Any, **more: Any) -> Any:
        begun.set()
        found.wait(PATIENT)
        return real(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert ask(connections, server, "/", seconds=0.1) == ["no answer within 100 ms"]
    assert begun.wait(PATIENT)
    found.set()
    assert ask(connections, server, "/") == [b"/"]


@pytest.mark.parametrize("url", ["http://a:99999", f"http://{'a' * 70}.b"])
def test_a_url_that_cannot_be_asked_is_said_to_be_none(connections: Connections, url: str) -> None:
    [answer] = asyncio.run(answered(connections, [Outgoing(url, "/", b"x", {})], PATIENT))
    assert str(answer) == "not a URL that can be asked"
