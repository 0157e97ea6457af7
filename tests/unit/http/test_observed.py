"""What is seen of requests: metrics of all workers, a line of the access log, and the trace that they belong to."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from quorin.engine.http.tracing import trace_context
from tests.support.echo_server import BEARER
from tests.support.http import ROOT, Running, request_series, serving

ECHO = ["tests.support.echo_server", "{port}"]
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=value"}
CONTENT = "nobody-may-read-this"


class Machine(NamedTuple):
    """A server whose counters are in a folder of its own."""

    server: Running
    shm: Path
    log: Path

    def series(self) -> dict[tuple[str, ...], float]:
        return request_series(self.shm)

    def lines(self, count: int) -> list[dict[str, Any]]:
        """So many lines of the access log. An application's is written after its answer."""
        end = time.monotonic() + 60
        while True:
            lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
            lines = [line for line in lines if line["event"] == "request" and line["path"] != "/health"]
            if len(lines) >= count:
                return lines
            assert time.monotonic() < end, lines


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "shm").mkdir()
    options = {
        "QUORIN_SHM_DIR": str(tmp_path / "shm"),
        **dict.fromkeys(("WITH_ACCESS_LOG", "WITH_SPANS", "WITH_ERRORS"), "1"),
    }
    with serving([*ECHO, "1"], tmp_path / "log", **options) as server:
        yield Machine(server, tmp_path / "shm", tmp_path / "log")


def test_requests_are_counted_by_path_way_and_status(machine: Machine) -> None:
    url = machine.server.url
    for _ in range(5):
        requests.post(url + "/direct", data=b"abc", timeout=5)
    requests.post(url + "/direct", data=b"not here", timeout=5)
    requests.post(url + "/direct", data=b"later", timeout=5)
    requests.post(url + "/direct", data=b"later, raise", timeout=5)
    requests.post(url + "/other", data=b"abc", timeout=5)
    requests.get(url + "/raise", timeout=5)
    requests.get(url + f"/{CONTENT}", timeout=5)
    for path, status, count in (
        ("/direct", "2xx", 2), ("/direct", "5xx", 1), ("/other", "2xx", 1), ("/raise", "5xx", 1)
    ):  # fmt: skip
        wait_for(machine, ("requests_total", path, status, "application"), count)
    series = machine.series()
    assert series["requests_total", "/direct", "2xx", "short"] == 5
    assert series["requests_total", "other", "2xx", "application"] >= 1
    assert series["rows_total", "/direct", "short"] == 15
    assert series["features_total", "/direct", "short"] == 10
    assert series["request_seconds_count", "/direct", "short"] == 5
    assert 0 < series["request_seconds_sum", "/direct", "short"] < 60
    assert not any(CONTENT in word for names in series for word in names)


def test_workers_count_together(tmp_path: Path) -> None:
    with serving([*ECHO, "2"], tmp_path / "log", QUORIN_SHM_DIR=str(tmp_path)) as server:
        for _ in range(40):
            assert requests.post(server.url + "/direct", data=b"a", timeout=5).ok
        machine = Machine(server, tmp_path, tmp_path / "log")
        assert machine.series()["requests_total", "/direct", "2xx", "short"] == 40
    assert machine.series()["requests_total", "/direct", "2xx", "short"] == 40
    assert machine.lines(0) == []


def test_an_answer_that_waits_is_in_flight(machine: Machine) -> None:
    with socket.create_connection(("127.0.0.1", machine.server.port), timeout=5) as connection:
        connection.sendall(b"POST /direct HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nhold")
        wait_for(machine, ("requests_in_flight", "/direct"), 1)
        machine.server.process.send_signal(signal.SIGUSR1)
        assert connection.recv(1_000)
    wait_for(machine, ("requests_in_flight", "/direct"), 0)


def test_requests_in_flight_are_those_of_living_processes(machine: Machine) -> None:
    with socket.create_connection(("127.0.0.1", machine.server.port), timeout=5) as connection:
        connection.sendall(b"POST /other HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nwait")
        wait_for(machine, ("requests_in_flight", "/other"), 1)
    wait_for(machine, ("requests_in_flight", "/other"), 0)
    with socket.create_connection(("127.0.0.1", machine.server.port), timeout=5) as connection:
        connection.sendall(b"POST /other HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nwait")
        wait_for(machine, ("requests_in_flight", "/other"), 1)
        machine.server.process.kill()
        machine.server.process.wait()
        assert machine.series().get(("requests_in_flight", "/other"), 0) == 0


def wait_for(machine: Machine, names: tuple[str, ...], value: float) -> None:
    end = time.monotonic() + 60
    while machine.series().get(names) != value:
        assert time.monotonic() < end, names


@pytest.mark.parametrize(
    ("sent", "reason", "environment"),
    [
        (b"no HTTP\r\n\r\n", "malformed", {}),
        (b"GET /x HTTP/1.1\r\nx: " + b"y" * 5_000 + b"\r\n\r\n", "limits", {}),
        (b"POST /direct HTTP/1.1\r\nhost: x\r\ncontent-length: 100001\r\n\r\n" + b"x" * 100_001, "limits", {}),
        (b"POST /direct HTTP/1.1\r\nhost: x\r\n", "slow", {}),
        (b"POST /direct HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "token", {"WITH_AUTHENTICATION": "1"}),
        (b"GET /other HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "connections", {"CONNECTIONS": "1"}),
    ],
    ids=["malformed", "head", "body", "slow", "token", "connections"],
)
def test_refusals_are_counted_by_their_reason(
    tmp_path: Path, sent: bytes, reason: str, environment: dict[str, str]
) -> None:
    options = {"QUORIN_SHM_DIR": str(tmp_path), "WITH_ACCESS_LOG": "1", **environment}
    with serving([*ECHO, "1"], tmp_path / "log", until=503 if "CONNECTIONS" in options else 200, **options) as server:
        machine = Machine(server, tmp_path, tmp_path / "log")
        before = machine.series().get(("requests_refused_total", reason), 0)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(sent)
            status = int(connection.recv(1_000).split(b" ")[1])
        assert machine.series()["requests_refused_total", reason] == before + 1
        assert machine.lines(1)[-1]["status"] == status


def test_the_access_log_has_a_line_for_each_request_and_nothing_of_its_content(machine: Machine) -> None:
    headers = {"X-Secret": CONTENT, "Authorization": f"Bearer {BEARER}"}
    for path, body in (("/direct", b"abc"), ("/direct", b"not here"), ("/other", CONTENT.encode())):
        url = f"{machine.server.url}{path}" + (f"?key={CONTENT}" if path == "/other" else "")
        requests.post(url, data=body, headers=headers, timeout=5)
    lines = machine.lines(3)
    expected = [
        ("POST", "/direct", 200, 3, len("direct:abc"), 3),
        ("POST", "/direct", 200, 8, len("asgi:not here"), 0),
        ("POST", "/other", 200, len(CONTENT), len("asgi:" + CONTENT), 0),
    ]
    names = ["method", "path", "status", "received_bytes", "sent_bytes", "rows"]
    assert [tuple(line[name] for name in names) for line in lines] == expected
    assert all(line["milliseconds"] >= 0 for line in lines)
    assert {*lines[0]} == {"event", "level", "logger", "timestamp", "milliseconds", *names}
    text = machine.log.read_text()
    assert CONTENT not in text
    assert BEARER not in text


@pytest.mark.parametrize(
    ("path", "body"), [("/direct", b"abc"), ("/direct", b"not here"), ("/direct", b"later"), ("/other", b"abc")]
)
def test_a_request_continues_the_trace_of_its_headers(machine: Machine, path: str, body: bytes) -> None:
    url = machine.server.url
    with requests.Session() as session:
        session.post(url + path, data=body, headers=TRACED, timeout=5)
        session.post(url + path, data=body, timeout=5)
        session.post(url + path, data=body, headers={"traceparent": "nonsense"}, timeout=5)
        spans = session.get(url + "/spans", timeout=5).json()[-3:]
    assert spans[0]["context"]["trace_id"] == f"0x{TRACE_ID}"
    assert spans[0]["parent_id"] == f"0x{SPAN_ID}"
    assert "vendor" in str(spans[0]["context"]["trace_state"])
    assert [span["parent_id"] for span in spans[1:]] == [None, None]
    lines = machine.lines(3)
    assert [line.get("trace_id") for line in lines[:3]] == [TRACE_ID, None, None]


def test_headers_without_a_trace_are_not_copied() -> None:
    context = trace_context()
    assert context is not None
    assert context.enter([(b"host", b"x"), (b"content-type", b"application/json")]) is None


def test_without_the_package_there_are_no_traces() -> None:
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from quorin.engine.http.tracing import trace_context; print(trace_context())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
