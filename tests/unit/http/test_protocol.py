"""The HTTP of the server: the short way answers as the long one does, and what is wrong or too much is refused."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.echo_server import BEARER, HELD, LIMITS
from tests.support.freezing import freeze
from tests.support.http import Running, serving
from tests.support.world import until

ECHO = ["tests.support.echo_server", "{port}"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving([*ECHO, "1"], tmp_path_factory.mktemp("echo") / "log") as running:
        yield running


def talk(server: Running, *parts: bytes, pause: float = 0.0) -> bytes:
    """Everything that the server says until it closes the connection, or says nothing more for a while."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while data := connection.recv(65_536):
                answer += data
        except (TimeoutError, ConnectionError):
            pass
        return answer


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    length = b"content-length: %d" % len(body)
    return b"\r\n".join([b"POST " + path + b" HTTP/1.1", b"host: x", length, *headers, b"", body])


def test_both_ways_answer(server: Running) -> None:
    with requests.Session() as session:
        for body in (b"", b"a", b"not here", b"x" * 99_999):
            for path in ("/direct", "/other"):
                is_direct = path == "/direct" and body != b"not here"
                answer = session.post(server.url + path, data=body, timeout=5)
                assert (answer.status_code, answer.content) == (200, (b"direct:" if is_direct else b"asgi:") + body)


def test_an_answer_that_waits_is_as_one_at_once(server: Running) -> None:
    with requests.Session() as session:
        for body in (b"later", b"later, not here"):
            answer = session.post(server.url + "/direct", data=body, timeout=5)
            expected = b"asgi:later, not here" if body == b"later, not here" else b"direct:later"
            assert (answer.status_code, answer.content) == (200, expected)
        assert session.post(server.url + "/direct", data=b"later, raise", timeout=5).status_code == 500
        assert session.post(server.url + "/direct", data=b"a", timeout=5).content == b"direct:a"


def test_what_arrives_behind_an_answer_that_waits_is_answered_after_it(server: Running) -> None:
    bodies = [b"later 1", b"2", b"later 3", b"later, not here", b"4"]
    for pause in (0.0, 0.1):
        answer = talk(server, *(post(b"/direct", body) for body in bodies), pause=pause)
        found = [re.search(rb"\r\n\r\n(asgi|direct):" + body, answer) for body in bodies]
        places = [one.start() for one in found if one]
        assert answer.count(b"HTTP/1.1 200 OK") == len(bodies)
        assert places == sorted(places)
        assert len(places) == len(bodies)


class Holding(NamedTuple):
    """A server that holds answers, and its log."""

    server: Running
    log: Path

    def hold(self, sent: bytes, count: int = 1) -> socket.socket:
        """A connection on which something was sent; as many answers are held then."""
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=60)
        connection.sendall(sent)
        until(lambda: self.log.read_text().count(HELD) == count)
        return connection

    def release(self) -> None:
        self.server.process.send_signal(signal.SIGUSR1)


@contextmanager
def holding(folder: Path, **environment: str) -> Iterator[Holding]:
    with serving([*ECHO, "1"], folder / "log", **environment) as server:
        yield Holding(server, folder / "log")


def leave(connection: socket.socket) -> None:
    """Reset a connection, which the server sees at once."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def everything(connection: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    answer = b""
    with connection:
        while data := connection.recv(65_536):
            answer += data
    return answer


@pytest.mark.parametrize("behind", [b"", post(b"/direct", b"a"), b"\x16 no HTTP\r\n\r\n"])
def test_a_client_that_leaves_before_its_answer_harms_nobody(tmp_path: Path, behind: bytes) -> None:
    with holding(tmp_path) as held:
        leave(held.hold(post(b"/direct", b"hold") + behind))
        assert requests.post(held.server.url + "/direct", data=b"a", timeout=5).content == b"direct:a"
        held.release()
        assert requests.post(held.server.url + "/direct", data=b"later", timeout=5).content == b"direct:later"
        assert "Traceback" not in held.log.read_text()


def test_clients_that_leave_make_no_more_tasks_than_there_may_be_connections(tmp_path: Path) -> None:
    with holding(tmp_path, CONNECTIONS="4") as held:
        for count in range(1, 5):
            leave(held.hold(post(b"/direct", b"hold"), count))
        assert requests.post(held.server.url + "/direct", data=b"hold", timeout=5).status_code == 503
        held.release()
        until(lambda: requests.post(held.server.url + "/direct", data=b"a", timeout=5).ok)


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (b"\x16 no HTTP\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 5_000 + b"\r\n\r\n", b"431"),
        (post(b"/direct", b"x" * 100_001), b"413"),
        (b"POST /other HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("between", [[], [b"/direct", b"/other"]])
def test_a_refusal_is_given_in_its_turn(tmp_path: Path, between: list[bytes], wrong: bytes, status: bytes) -> None:
    sent = post(b"/direct", b"hold") + b"".join(post(path, b"a") for path in between)
    with holding(tmp_path) as held:
        connection = held.hold(sent + wrong)
        held.release()
        *answers, refusal, _ = re.split(rb"(?=HTTP/1.1 )", everything(connection) + b"HTTP/1.1 ")
        assert [answer[9:12] for answer in answers[1:]] == [b"200"] * (1 + len(between))
        assert answers[1].endswith(b"direct:hold")
        assert refusal[9:12] == status
        assert b"connection: close" in refusal


def test_a_request_that_is_not_read_yet_is_not_slow(tmp_path: Path) -> None:
    behind = post(b"/other", b"abc", b"connection: close")
    with holding(tmp_path, REQUEST_SECONDS="1") as held:
        connection = held.hold(post(b"/direct", b"hold") + behind[:-1])
        connection.sendall(behind[-1:])
        time.sleep(1.5)  # Longer than a request may take.
        held.release()
        answer = everything(connection)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.endswith(b"asgi:abc")


@pytest.mark.parametrize("before", [post(b"/other", b"remember"), post(b"/direct", b"later, remember")])
def test_a_request_does_not_see_the_context_of_the_one_before(server: Running, before: bytes) -> None:
    for path in (b"/direct", b"/other"):
        answer = talk(server, before + post(path, b"recall"))
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.endswith(b"asgi:recall:nothing")


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    paths = [b"/direct", b"/other", b"/direct", b"/direct", b"/other"]
    sent = b"".join(post(path, b"n%d" % number) for number, path in enumerate(paths))
    answer = talk(server, sent)
    assert answer.count(b"HTTP/1.1 200 OK") == len(paths)
    assert sorted(answer.index(b":n%d" % number) for number in range(5)) == [
        answer.index(b":n%d" % number) for number in range(5)
    ]


@given(body=st.binary(max_size=300), cuts=st.lists(st.integers(0, 500), max_size=6), chunked=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_request_may_arrive_in_any_pieces(server: Running, body: bytes, cuts: list[int], chunked: bool) -> None:
    if chunked:
        chunks = [body[start : start + 100] for start in range(0, len(body), 100)]
        text = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        sent = b"POST /direct HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n" + text
    else:
        sent = post(b"/direct", body, b"connection: close")
    ends = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    answer = talk(server, *(sent[start:stop] for start, stop in pairwise(ends)), pause=0.001)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    expected = b"asgi:not here" if body == b"not here" else b"direct:" + body
    assert answer.endswith(b"\r\n\r\n" + expected)


def test_a_client_that_waits_for_100_continue_gets_it(server: Running) -> None:
    head = post(b"/direct", b"", b"connection: close").replace(b"content-length: 0", b"content-length: 2")
    answer = talk(server, head.replace(b"host: x", b"host: x\r\nexpect: 100-continue"), b"ab", pause=0.2)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert answer.endswith(b"asgi:ab")


def test_http_1_0_is_answered_and_closed(server: Running) -> None:
    answer = talk(server, b"POST /direct HTTP/1.0\r\ncontent-length: 2\r\n\r\nab")
    assert answer.endswith(b"direct:ab")
    assert b"connection: close" in answer


def test_nothing_is_answered_behind_the_last_request(server: Running) -> None:
    answer = talk(server, post(b"/direct", b"a", b"connection: close") + post(b"/direct", b"b"))
    assert answer.endswith(b"direct:a")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"400"),
        (b"POST /direct HTTP/1.1\r\ncontent-length: many\r\n\r\n", b"400"),
        (b"POST /direct HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", b"400"),
        (b"POST /direct HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 2_000 + b"\r\n", b"431"),
        (post(b"/direct", b"x" * 100_001), b"413"),
        (post(b"/other", b"x" * 100_001), b"413"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_or_too_much_is_refused(server: Running, sent: bytes, status: bytes) -> None:
    answer = talk(server, sent)
    assert answer.split(b"\r\n")[0].split(b" ")[1] == status
    assert b"connection: close" in answer
    assert requests.post(server.url + "/direct", data=b"a", timeout=5).content == b"direct:a"


@pytest.mark.parametrize("before", [b"", post(b"/direct", b"a")], ids=["first", "behind-another"])
def test_a_head_in_parts_is_measured_whole(server: Running, before: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(before + b"POST /direct HTTP/1.1\r\ncontent-length: 1\r\n" + b"x: y\r\n" * 450)
        time.sleep(0.1)
        connection.sendall(b"x: y\r\n" * 450 + b"\r\na")
        received = b""
        while b" 431 " not in received:
            part = connection.recv(10_000)
            assert part, received
            received += part


def test_a_head_without_an_end_is_refused(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(100):  # What is sent after the refusal would reset the connection, and the answer with it.
            connection.sendall(b"y" * 1_000)
            if select.select([connection], [], [], 0.02)[0]:
                break
        assert connection.recv(1_000).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("sent", [b"", b"POST", post(b"/direct", b"")[:-4], post(b"/direct", b"abc")[:-1]])
def test_a_client_that_is_too_slow_is_refused(server: Running, sent: bytes) -> None:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.recv(1_000).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started >= LIMITS.request_seconds * 0.9


def test_a_silent_connection_is_closed(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(post(b"/direct", b"a"))
        assert connection.recv(1_000).endswith(b"direct:a")
        assert connection.recv(1_000) == b""


@given(st.binary(max_size=2_000))
@settings(max_examples=40, deadline=None)
def test_no_bytes_stop_the_server(server: Running, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(noise)
    assert requests.post(server.url + "/direct", data=b"a", timeout=5).content == b"direct:a"


def test_without_the_token_nothing_is_read(tmp_path: Path) -> None:
    with serving([*ECHO, "1"], tmp_path / "log", WITH_AUTHENTICATION="1") as server:
        for path in ("/direct", "/other"):
            for given_token in (None, "wrong", BEARER + "x", ""):
                headers = {} if given_token is None else {"Authorization": f"Bearer {given_token}"}
                assert requests.post(server.url + path, data=b"a", headers=headers, timeout=5).status_code == 401
            headers = {"Authorization": f"Bearer {BEARER}"}
            assert requests.post(server.url + path, data=b"a", headers=headers, timeout=5).ok
        assert requests.get(server.url + "/health", timeout=5).ok
    assert BEARER not in (tmp_path / "log").read_text()


def test_a_stop_answers_what_waits(tmp_path: Path) -> None:
    with serving([*ECHO, "1"], tmp_path / "log") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(post(b"/direct", b"later"))
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            answer = connection.recv(1_000)
        assert answer.endswith(b"direct:later")
        assert b"connection: close" in answer
        server.process.wait(30)


@pytest.mark.parametrize("body", [b"slow", b"later", b"not here", b"later, not here"])
def test_a_stop_answers_what_has_begun(tmp_path: Path, body: bytes) -> None:
    with serving([*ECHO, "1"], tmp_path / "log") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(post(b"/direct", body)[:-1])
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            connection.sendall(body[-1:])
            answer = everything(connection)
        assert answer.endswith((b"asgi:" if body.endswith(b"here") else b"direct:") + body)
        assert b"connection: close" in answer
        server.process.wait(30)


def test_workers_share_the_port_and_are_replaced_when_they_die(tmp_path: Path) -> None:
    def worker() -> int | None:
        try:
            return int(requests.post(server.url + "/direct", data=b"pid", timeout=5).text)
        except requests.ConnectionError:
            return None

    def workers(count: int) -> set[int]:
        end = time.monotonic() + 60
        found: set[int] = set()
        while time.monotonic() < end and len(found) < count:
            with ThreadPoolExecutor(8) as pool:
                found |= {pid for pid in pool.map(lambda _: worker(), range(32)) if pid is not None}
        return found

    with serving([*ECHO, "2"], tmp_path / "log") as server:
        first = workers(2)
        assert len(first) == 2
        os.kill(min(first), signal.SIGKILL)
        assert len(workers(2) | first) == 3


def test_a_worker_that_dies_while_it_is_asked_whether_it_lives_is_replaced_at_once(tmp_path: Path) -> None:
    with serving([*ECHO, "2"], tmp_path / "log") as server:
        with requests.Session() as session:
            worker = int(session.post(server.url + "/direct", data=b"pid", timeout=5).text)
        freeze(worker)
        time.sleep(1.5)  # It is asked twice a second, and the question waits up to a minute for the answer.
        os.kill(worker, signal.SIGKILL)
        end = time.monotonic() + 45
        while f"Child process [{worker}] died" not in (tmp_path / "log").read_text():
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.parametrize(("hard", "expected"), [(5_000, (3_000, 4_024)), (2_000, (1_000, 2_000)), (700, (350, 700))])
def test_a_server_may_open_as_many_files_as_it_has_connections(hard: int, expected: tuple[int, int]) -> None:
    """Or has fewer connections: one that can't be accepted would be dropped without an answer and a count."""
    script = f"""
from resource import RLIMIT_NOFILE as files, getrlimit, setrlimit
setrlimit(files, (256, {hard}))
from quorin.engine.http.run import within_open_files
print((within_open_files(3_000), getrlimit(files)[0]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"{expected}\n"
    assert ("connections_limited" in done.stderr) == (expected[0] < 3_000)


def test_workers_end_with_the_process_that_replaces_them(tmp_path: Path) -> None:
    with serving([*ECHO, "2"], tmp_path / "log") as server:
        server.process.kill()
        server.process.wait()
        end = time.monotonic() + 45
        while is_up(server):
            assert time.monotonic() < end
            time.sleep(0.1)


def is_up(server: Running) -> bool:
    try:
        return requests.post(server.url + "/direct", data=b"a", timeout=5).ok
    except requests.ConnectionError:
        return False
