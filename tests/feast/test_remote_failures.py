"""What a remote store does if its server is away, refuses, is late, or breaks off: a clear error, never a wrong row."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
from feast import FeatureStore

from feast_quorin.remote import messages
from feast_quorin.remote.client import RemoteStoreError
from quorin.errors import ConnectionFailedError, SegmentNotFoundError
from tests.feast.repos import END, START, day, definitions
from tests.feast.served import Served, served
from tests.support.http import free_port, make_certificate, serving

REQUEST: dict[str, Any] = {"features": ["customer_stats:score"], "entity_rows": {"customer": ["alice"]}}
ANSWER = {"customer": ["alice"], "score": [1.5]}
TOKEN = "correct-horse"  # noqa: S105 - of a server of this test
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def machine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), definitions(data), "--max-rows", "2000") as machine:
        machine.local.materialize(START, END)
        yield machine


@pytest.fixture
def store(machine: Served, data: Path, tmp_path: Path) -> FeatureStore:
    return machine.remote(tmp_path / "remote", data)


def at(machine: Served, folder: Path, data: Path, url: str, **online_store: Any) -> FeatureStore:
    """A store with another URL."""
    return machine.remote(folder / "elsewhere", data, {"remote": url, "timeout_ms": 300, **online_store})


def push(store: FeatureStore, customer: str = "pushed") -> None:
    store.push("customer_push", pd.DataFrame({"customer": [customer], "at": [day(0)], "score": [1.0], "city": ["x"]}))


def test_threads_share_a_store(store: FeatureStore) -> None:
    def ask(_: int) -> Any:
        return store.get_online_features(**REQUEST).to_dict()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(200))) == [ANSWER] * 200


def test_a_forked_child_has_connections_of_its_own(store: FeatureStore) -> None:
    assert store.get_online_features(**REQUEST).to_dict() == ANSWER
    session = store.provider.online_store.session(store.config)

    def child() -> None:
        for _ in range(50):
            assert store.get_online_features(**REQUEST).to_dict() == ANSWER
        assert store.provider.online_store.session(store.config) is not session

    children = [fork.Process(target=child) for _ in range(3)]
    for one in children:
        one.start()
    for _ in range(50):
        assert store.get_online_features(**REQUEST).to_dict() == ANSWER
    for one in children:
        one.join(120)
    assert [one.exitcode for one in children] == [0, 0, 0]


def test_a_server_that_was_killed_is_named_and_used_again_when_it_is_back(
    machine: Served, data: Path, tmp_path: Path
) -> None:
    port = free_port()
    words = ["quorin", "serve", "-r", str(machine.local.repo_path), "-p", str(port)]
    store = at(machine, tmp_path, data, f"http://127.0.0.1:{port}", timeout_ms=60_000)
    for number in range(2):
        with running(words, port, tmp_path / f"{number}.log") as process:
            assert store.get_online_features(**REQUEST).to_dict() == ANSWER
            push(store)
            process.send_signal(signal.SIGKILL)
            process.wait()
            for action in (lambda: store.get_online_features(**REQUEST), lambda: push(store)):
                with pytest.raises(ConnectionFailedError, match=rf"POST http://127.0.0.1:{port}/\S+: .*refused"):
                    action()


@contextmanager
def running(words: list[str], port: int, log: Path) -> Iterator[Any]:
    """A server on a known port, which may be killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.http.free_port", lambda: port)
        try:
            with serving(words, log) as server:
                yield server.process
        except AssertionError as error:
            if server.process.returncode != -signal.SIGKILL:
                raise AssertionError(log.read_text()) from error


def test_a_view_without_a_segment_is_named(machine: Served, store: FeatureStore) -> None:
    online, config = machine.local.provider.online_store, machine.local.config
    online.teardown(config, [], [])
    try:
        with pytest.raises(SegmentNotFoundError, match="422: feature view 'customer_stats' has no segment"):
            store.get_online_features(**REQUEST)
    finally:
        online.update(config, [], machine.local.list_batch_feature_views(), [], [], False)
        machine.local.materialize(START, END)


def test_more_rows_than_the_server_takes_are_refused(store: FeatureStore) -> None:
    for count in (2_000, 2_001):
        rows = {"customer": ["alice"] * count}
        if count == 2_000:
            assert store.get_online_features(REQUEST["features"], rows).to_dict()["score"] == [1.5] * count
            continue
        with pytest.raises(RemoteStoreError, match="413: expected at most 2000 rows") as refused:
            store.get_online_features(REQUEST["features"], rows)
        assert refused.value.status == 413


def test_an_apply_and_a_teardown_leave_the_segments_alone(machine: Served, store: FeatureStore) -> None:
    online, config = store.provider.online_store, store.config
    online.update(config, machine.local.list_batch_feature_views(), [], [], [], False)
    online.teardown(config, machine.local.list_batch_feature_views(), [])
    assert store.get_online_features(**REQUEST).to_dict() == ANSWER


def test_documents_are_searched_on_the_machine_of_the_segments(store: FeatureStore) -> None:
    with pytest.raises(NotImplementedError, match="search on its machine"):
        store.retrieve_online_documents_v2(features=["driver_stats:embedding"], query=[1.0, 2.0, 3.0], top_k=1)


@pytest.mark.parametrize("path", [messages.ONLINE_FEATURES, messages.READ, messages.WRITE])
@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "expected a stream of Arrow"),
        (b"\xff" * 100, 400, "expected a stream of Arrow"),
        (messages.message({})[:-40], 400, "expected a stream of Arrow"),
        (messages.message({}, project="other"), 409, "this server has the project 'shop', not 'other'"),
    ],
    ids=["nothing", "noise", "cut", "project"],
)
def test_messages_that_are_none_are_refused(machine: Served, path: str, body: bytes, status: int, reason: str) -> None:
    headers = {"Content-Type": messages.CONTENT_TYPE}
    answer = requests.post(machine.server.url + path, data=body, headers=headers, timeout=60)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text


@pytest.mark.parametrize(
    ("path", "about", "reason"),
    [
        (messages.ONLINE_FEATURES, {"features": "x"}, "expected a list of texts as features"),
        (messages.ONLINE_FEATURES, {"features": [1]}, "expected a list of texts as features"),
        (messages.ONLINE_FEATURES, {"feature_service": 1}, "expected a list of texts as features"),
        (messages.ONLINE_FEATURES, {"features": [], "full_feature_names": "yes"}, "expected true or false as"),
        (messages.READ, {"fields": []}, "expected a column entity_id of texts"),
        (messages.WRITE, {"view": 1, "schema": "x"}, "expected texts as view and schema"),
        (messages.WRITE, {"view": "x", "schema": "x", "partial": 1}, "expected true or false as partial"),
    ],
    ids=str,
)
def test_messages_of_another_content_are_refused(machine: Served, path: str, about: Any, reason: str) -> None:
    headers = {"Content-Type": messages.CONTENT_TYPE}
    answer = requests.post(machine.server.url + path, data=messages.message({}, **about), headers=headers, timeout=60)
    assert (answer.status_code, reason in answer.json()["detail"]) == (400, True), answer.text


def test_a_server_with_a_token_and_a_certificate(machine: Served, data: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "wrong").write_text("wrong")
    words = ["quorin", "serve", "-r", str(machine.local.repo_path), "-p", "{port}", "--token-file"]
    words += [str(tmp_path / "token"), "--tls-key", str(key), "--tls-cert", str(certificate)]
    with serving(words, tmp_path / "log", certificate=certificate) as server:

        def store(token_file: str | None, tls_ca: str | None) -> FeatureStore:
            files = {"token_file": token_file, "tls_ca": tls_ca}
            paths = {name: str(tmp_path / file) for name, file in files.items() if file}
            return at(machine, tmp_path, data, server.url, timeout_ms=60_000, **paths)

        right = store("token", "certificate.pem")
        push(right)
        assert right.get_online_features(**REQUEST).to_dict() == ANSWER
        for wrong in (store(None, "certificate.pem"), store("wrong", "certificate.pem")):
            for action in (lambda wrong=wrong: wrong.get_online_features(**REQUEST), lambda wrong=wrong: push(wrong)):
                with pytest.raises(RemoteStoreError, match=r"401: expected the header .*token_file") as refused:
                    action()
                assert TOKEN not in str(refused.value)
                assert "wrong" not in str(refused.value)
        with pytest.raises(ConnectionFailedError, match="CERTIFICATE_VERIFY_FAILED"):
            store("token", None).get_online_features(**REQUEST)
        with pytest.raises(ConnectionFailedError, match=r"tls_ca .*token.*expected certificates in PEM"):
            store("token", "token").get_online_features(**REQUEST)
        with pytest.raises(ConnectionFailedError, match=r"token_file .*none"):
            store("none", None).get_online_features(**REQUEST)


class Odd:
    """A server that answers every request with the same bytes, or not at all, and counts the requests."""

    def __init__(self, *answers: bytes | None) -> None:
        self.requests = 0
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        kept = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            request = b""
            while not request.endswith(b"\0\0\0\0"):  # the end of an Arrow stream
                request += connection.recv(1 << 20)
            answer = self._answers[min(self.requests, len(self._answers) - 1)]
            self.requests += 1
            kept.append(connection)
            if answer is not None:
                connection.sendall(answer)
                connection.close()

    def close(self) -> None:
        self._listener.close()


def http(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    return "\r\n".join([*head, *headers, "", ""]).encode() + body


ARROW = f"Content-Type: {messages.CONTENT_TYPE}"
UNAVAILABLE = http("503 Service Unavailable", b'{"detail": "later"}')
ODD: dict[str, tuple[bytes | None, type[Exception], str, int, int]] = {
    "no answer": (None, ConnectionFailedError, "no answer within 0.3 s", 4, 1),
    "no bytes": (b"", ConnectionFailedError, "RemoteDisconnected|closed connection", 4, 1),
    "cut off": (http("200 OK", b"x" * 10, ARROW, length=100), ConnectionFailedError, "IncompleteRead|10", 4, 1),
    "not available": (UNAVAILABLE, RemoteStoreError, "503: later", 4, 1),
    "gateway": (http("504 Gateway Timeout", b"<html>"), RemoteStoreError, "504: <html>", 4, 1),
    "forbidden": (http("403 Forbidden", b'{"detail": "no"}'), RemoteStoreError, "403: no", 1, 1),
    "moved": (http("302 Found", b"", "Location: http://127.0.0.1:1/"), RemoteStoreError, "302", 1, 1),
    "another type": (http("200 OK", b"{}", "Content-Type: application/json"), RemoteStoreError, "expected app", 1, 1),
    "no Arrow": (http("200 OK", b"x" * 100, ARROW), messages.BadMessageError, "expected an Arrow stream", 1, 0),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", ConnectionFailedError, "SSH", 4, 1),
}
"""What a server answers; what a read raises; how often a read and a write are sent. 0: a write needs no answer."""


@pytest.mark.parametrize("name", ODD)
def test_odd_answers(machine: Served, data: Path, tmp_path: Path, name: str) -> None:
    answer, kind, text, reads, writes = ODD[name]
    server = Odd(answer)
    store = at(machine, tmp_path, data, server.url)
    with pytest.raises(kind, match=text):
        store.get_online_features(**REQUEST)
    assert server.requests == reads
    if writes:
        with pytest.raises(kind, match=text):
            push(store)
        assert server.requests == reads + writes
    server.close()


def test_a_server_that_is_not_available_for_a_moment_is_asked_again(
    machine: Served, data: Path, tmp_path: Path
) -> None:
    body = requests.post(
        machine.server.url + messages.ONLINE_FEATURES,
        data=messages.message({"customer": messages.pa.array(["alice"])}, features=REQUEST["features"]),
        headers={"Content-Type": messages.CONTENT_TYPE},
        timeout=60,
    ).content
    server = Odd(UNAVAILABLE, b"", http("200 OK", body, ARROW))
    assert at(machine, tmp_path, data, server.url).get_online_features(**REQUEST).to_dict() == ANSWER
    assert server.requests == 3
    server.close()


def test_feasts_own_server_is_told_apart(data: Path, machine: Served, tmp_path: Path) -> None:
    words = ["feast.cli.cli", "-c", str(machine.local.repo_path), "serve", "-p", "{port}"]
    with serving(words, tmp_path / "log") as server:
        store = at(machine, tmp_path, data, server.url, timeout_ms=60_000)
        with pytest.raises(RemoteStoreError, match=r"404: .*`quorin serve`"):
            store.get_online_features(**REQUEST)
