"""``quorin serve`` beside ``feast serve`` on one repository: the same answers, to every request."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pytest
import requests
import yaml
from feast import FeatureService, FeatureStore
from schemathesis import Case
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
    status_code_conformance,
)

from tests.feast.repos import CUSTOMERS, DRIVER_FEATURES, END, REQUESTS, START, day, definitions
from tests.support.commands import run_quorin
from tests.support.described import check_operation
from tests.support.http import Running, make_certificate, serving

PATH = "/get-online-features"
AS_JSON = {"Content-Type": "application/json"}
NUMBERS = ["driver_stats:conv_rate", "driver_stats:acc"]


class Servers(NamedTuple):
    feast: Running
    quorin: Running
    repository: Path


def make_repository(folder: Path, data: Path, segments: Path, **further: Any) -> FeatureStore:
    folder.mkdir()
    segments.mkdir()
    online_store = {"type": "quorin", "path": str(folder / "quorin"), "shm_dir": str(segments), "capacity": 64}
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": str(folder / "registry.db"),
        "online_store": online_store,
        "entity_key_serialization_version": 3,
        **further,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = FeatureStore(repo_path=str(folder))
    store.apply(definitions(data))
    views = [store.get_feature_view("customer_stats")]
    store.apply([FeatureService(name="precomputed", features=views, precompute_online=True)])
    store.materialize(START, END)
    strange = {"customer": ["odd", "high", "low", "🦊"], "at": [day(9)] * 4}
    scores = [float("nan"), float("inf"), float("-inf"), 0.1]
    store.push("customer_push", pd.DataFrame({**strange, "score": scores, "city": ['q"\\\n', "", "\x00", "Łódź"]}))
    return store


@pytest.fixture(scope="module")
def servers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("server")
    repository = folder / "repository"
    make_repository(repository, data, folder / "segments")
    feast = ["feast.cli.cli", "-c", str(repository), "serve", "-p", "{port}"]
    quorin = ["quorin", "serve", "-r", str(repository), "-p", "{port}", "--max-rows", "150000"]
    with serving(feast, folder / "feast.log") as one, serving(quorin, folder / "quorin.log") as two:
        yield Servers(one, two, repository)


def both(servers: Servers, body: Any, **options: Any) -> list[requests.Response]:
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    options = {"headers": {"Content-Type": "application/json"}, **options}
    return [requests.post(server.url + PATH, data=text, timeout=60, **options) for server in servers[:2]]


def same(servers: Servers, body: Any, **options: Any) -> requests.Response:
    expected, found = both(servers, body, **options)
    assert (found.status_code, found.json()) == (expected.status_code, expected.json())
    return found


def columns(rows: Any) -> dict[str, list[Any]]:
    return rows if isinstance(rows, dict) else {name: [row[name] for row in rows] for name in rows[0]}


def as_json(request: dict[str, Any]) -> dict[str, Any]:
    body = {**request, "entities": columns(request["entity_rows"])}
    del body["entity_rows"]
    if isinstance(body["features"], str):
        body["feature_service"] = body.pop("features")
    return body


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_of_every_kind_are_those_of_feast(servers: Servers, name: str) -> None:
    body = as_json(REQUESTS[name])
    answer = same(servers, body)
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == len(answer.json()["metadata"]["feature_names"])


@pytest.mark.parametrize("driver", [1001, 1002, 1003, 1004, 1005, 7])
def test_one_row_of_every_type_is_that_of_feast(servers: Servers, driver: int) -> None:
    features = [f"driver_stats:{name}" for name in DRIVER_FEATURES]
    assert same(servers, {"features": features, "entities": {"driver_id": [driver]}}).ok


@pytest.mark.parametrize("customers", [["odd"], ["odd", "high", "low", "🦊", "none"]])
def test_numbers_that_json_lacks_are_the_strings_of_feast(servers: Servers, customers: list[str]) -> None:
    features = ["customer_stats:score", "customer_stats:city"]
    answer = same(servers, {"features": features, "entities": {"customer": customers}})
    assert "Infinity" in answer.text or customers == ["odd"]


@pytest.mark.parametrize(
    "body",
    [
        {"features": ["driver_stats:none"], "entities": {"driver_id": [1]}},
        {"features": ["nothing:none"], "entities": {"driver_id": [1]}},
        {"feature_service": "nothing", "entities": {"driver_id": [1]}},
        {"feature_service": "", "features": NUMBERS, "entities": {"driver_id": [1]}},
        {"features": [], "entities": {"driver_id": [1]}},
        {"features": NUMBERS, "entities": {}},
        {"features": NUMBERS, "entities": {"driver_id": []}},
        {"features": NUMBERS, "entities": {"wrong": [1]}},
        {"features": NUMBERS, "entities": {"driver_id": [None]}},
        {"features": NUMBERS, "entities": {"driver_id": ["x"]}},
        {"features": NUMBERS, "entities": {"driver_id": [1.5]}},
        {"features": NUMBERS, "entities": {"driver_id": [True]}},
        {"features": NUMBERS, "entities": {"driver_id": [2**63 - 1, -(2**63)]}},
        {"features": NUMBERS, "entities": {"driver_id": [2**63]}},
        {"features": NUMBERS, "entities": {"driver_id": [2**64]}},
        {"features": NUMBERS, "entities": {"driver_id": [10**400]}},
        {"features": NUMBERS, "entities": {"driver_id": [[1]]}},
        {"features": NUMBERS, "entities": {"driver_id": {"a": 1}}},
        {"features": NUMBERS, "entities": {"driver_id": 1001}},
        {"features": NUMBERS, "entities": {"driver_id": [1001], "other": [1, 2]}},
        {"features": NUMBERS, "entities": {"driver_id": [1001], "conv_rate": [1]}},
        {"features": "driver_stats:acc", "entities": {"driver_id": [1001]}},
        {"features": [1], "entities": {"driver_id": [1001]}},
        {"features": None, "entities": {"driver_id": [1001]}},
        {"features": NUMBERS, "entities": {"driver_id": [1001]}, "full_feature_names": "true"},
        {"features": NUMBERS, "entities": {"driver_id": [1001]}, "full_feature_names": 1},
        {"features": NUMBERS, "entities": {"driver_id": [1001]}, "full_feature_names": None},
        {"features": NUMBERS, "entities": {"driver_id": [1001]}, "unknown": 1},
        {"features": [*NUMBERS, *NUMBERS], "entities": {"driver_id": [1001]}},
        {"features": ["boosted:boosted_rate"], "entities": {"driver_id": [1001]}},
        {"features": ["boosted:boosted_rate"], "entities": {"driver_id": [1001], "factor": ["a"]}},
        {"features": ["boosted:boosted_rate"], "entities": {"driver_id": [1001], "factor": [None]}},
        [],
        "",
        "{",
        "null",
        "[" * 1_000,
        '{"features": ["driver_stats:acc"], "entities": {"driver_id": [NaN]}}',
        '{"features": ["driver_stats:acc"], "entities": {"driver_id": [1001]}, "features": ["driver_stats:trips"]}',
        '{"features": ["customer_stats:score"], "entities": {"customer": ["\\ud800"]}}',
        b'{"features": ["customer_stats:score"], "entities": {"customer": ["\xff"]}}',
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda body: str(body)[:60],
)
def test_refusals_are_those_of_feast(servers: Servers, body: Any) -> None:
    same(servers, body)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"])
def test_the_type_of_the_body_counts_as_in_feast(servers: Servers, kind: str) -> None:
    body = {"features": NUMBERS, "entities": {"driver_id": [1001]}}
    same(servers, body, headers={"Content-Type": kind})


@pytest.mark.parametrize(
    ("method", "path"), [("GET", PATH), ("GET", "/health"), ("GET", "/nothing"), ("GET", "/openapi.json")]
)
def test_other_paths_are_those_of_feast(servers: Servers, method: str, path: str) -> None:
    expected, found = (requests.request(method, server.url + path, timeout=60) for server in servers[:2])
    assert (found.status_code, found.content) == (expected.status_code, expected.content)


def test_a_push_is_served_by_the_next_request(servers: Servers) -> None:
    request = {"features": ["customer_stats:score"], "entities": {"customer": ["pushed"]}}
    for number in range(3):
        frame = {"customer": ["pushed"], "at": [day(10 + number).isoformat()], "score": [number], "city": ["x"]}
        pushed = requests.post(
            servers.quorin.url + "/push", json={"push_source_name": "customer_push", "df": frame}, timeout=60
        )
        assert pushed.ok, pushed.text
        assert same(servers, request).json()["results"][1]["values"] == [number]


@pytest.mark.parametrize("order", [[3, 1, 3, 2], [6, 5, 4, 3], [1, 1, 1], [2, 99, 0, 99, 2]], ids=str)
def test_rows_of_a_precomputed_service_keep_their_order(servers: Servers, order: list[int]) -> None:
    """Feast's own precomputed path gives rows the values of other entities (issue 6805 of Feast)."""
    asked = [CUSTOMERS[number] if number < 99 else "nobody" for number in order]
    found = same(servers, {"feature_service": "precomputed", "entities": {"customer": asked}}).json()
    single = [
        same(servers, {"feature_service": "precomputed", "entities": {"customer": [name]}}).json() for name in asked
    ]
    for column, result in enumerate(found["results"]):
        for part, values in result.items():
            assert values == [one["results"][column][part][0] for one in single]
    assert found["results"][0]["values"] == asked


def test_arrow_holds_what_the_json_does(servers: Servers) -> None:
    names = [name for name in DRIVER_FEATURES if name not in ("blob", "joined", "prefs")]
    body = {"features": [f"driver_stats:{name}" for name in names], "entities": {"driver_id": [1002, 7, 1001]}}
    url = servers.quorin.url + PATH
    answer = requests.post(url, json=body, headers={"Accept": "application/vnd.apache.arrow.stream"}, timeout=60)
    expected = requests.post(url, json=body, timeout=60).json()
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    with pa.ipc.open_stream(answer.content) as stream:
        (batch,) = list(stream)
    for name, result in zip(expected["metadata"]["feature_names"], expected["results"], strict=True):
        assert batch[name].to_pylist() == result["values"]
        metadata = batch.schema.field(name).metadata
        if metadata is not None:
            assert batch[metadata[b"status"].decode()].to_pylist() == result["statuses"]
            times = batch[metadata[b"event_timestamp"].decode()]
            assert times.is_null().to_pylist() == [status == "NOT_FOUND" for status in result["statuses"]]
    assert batch.schema.field("conv_rate").type == pa.float32()


def test_a_hundred_thousand_rows_are_answered(servers: Servers) -> None:
    drivers = [1001, 7, 1002, 1003] * 25_000
    url = servers.quorin.url + PATH
    answer = requests.post(url, json={"features": NUMBERS, "entities": {"driver_id": drivers}}, timeout=60)
    few = requests.post(url, json={"features": NUMBERS, "entities": {"driver_id": drivers[:4]}}, timeout=60).json()
    for many, four in zip(answer.json()["results"], few["results"], strict=True):
        assert many == {part: values * 25_000 for part, values in four.items()}


def many() -> dict[str, list[int]]:
    return {f"key_{number}": [1] for number in range(1_000_000)}


@pytest.mark.parametrize(
    ("make_body", "reason"),
    [
        (
            lambda: {"features": NUMBERS, "entities": {"driver_id": [1] * 150_001}},
            "expected at most 150000 rows, got 150001",
        ),
        (
            lambda: {"features": NUMBERS, "entities": {"driver_id": [1.5, None] * 100_000}},
            "at most 150000 rows, got 200000",
        ),
        (lambda: {"features": NUMBERS, "entities": {"driver_id": [float("nan")] * 200_000}}, "150000 rows, got 200000"),
        (lambda: {"features": NUMBERS, "entities": many()}, "expected at most 1000 columns, got 1000000"),
        (lambda: {"entities": {"driver_id": [1]}, **many()}, "expected at most 1000 keys, got 1000001"),
        (lambda: {"features": NUMBERS * 10_000, "entities": {"driver_id": [1]}}, "at most 10000 features, got 20000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_than_allowed_is_refused(servers: Servers, make_body: Callable[[], dict[str, Any]], reason: str) -> None:
    sent = json.dumps(make_body())
    before = resident_bytes(servers.quorin)
    for _ in range(3):
        refused = requests.post(servers.quorin.url + PATH, sent, headers=AS_JSON, timeout=60)
        assert refused.status_code == 413
        assert reason in refused.json()["detail"]
    assert resident_bytes(servers.quorin) < before + 500 * 2**20
    same(servers, {"features": NUMBERS, "entities": {"driver_id": [1001]}})


@pytest.mark.parametrize(
    "sent",
    [
        b'{"entities":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"entities":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"features": ["driver_stats:acc"], "entities": {"driver_id": ["\xff\xfe"]}}',
        b'{"features": ["driver_stats:acc"], "entities": {"driver_id": [' + b"9" * 10_000 + b"]}}",
        b'{"features": ["../../etc/passwd:x"], "entities": {"driver_id": [1]}}',
        b'{"feature_service": "../../etc/passwd", "entities": {"driver_id": [1]}}',
        b'{"features": ["\\ud800:x"], "entities": {"driver_id": [1]}}',
    ],
    ids=lambda sent: str(sent[:40]),
)
def test_hostile_json_is_refused_as_feast_refuses_it(servers: Servers, sent: bytes) -> None:
    answers = [requests.post(one.url + PATH, sent, headers=AS_JSON, timeout=60) for one in servers[:2]]
    assert [400 <= answer.status_code < 500 for answer in answers] == [True, True]
    assert answers[0].content == answers[1].content


def test_a_connection_outlives_what_feast_refuses(servers: Servers) -> None:
    connection = HTTPConnection("127.0.0.1", servers.quorin.port, timeout=60)
    for number in range(20):
        view = "nothing" if number % 2 else "driver_stats"
        body = json.dumps({"features": [f"{view}:acc"], "entities": {"driver_id": [424242]}})
        connection.request("POST", PATH, body, AS_JSON)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == (404 if number % 2 else 200)
    connection.close()


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//get-online-features", "/%00", "/get-online-features%00"],
)
def test_paths_lead_nowhere(servers: Servers, path: str) -> None:
    with socket.create_connection(("127.0.0.1", servers.quorin.port), timeout=60) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 404 ")


def resident_bytes(server: Running) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_rows_are_sent_to_new_machines(servers: Servers) -> None:
    names = [one["schema"] for one in requests.get(servers.quorin.url + "/ready", timeout=60).json()["schemas"]]
    for name in names:
        answer = requests.get(servers.quorin.url + "/v1/snapshot", params={"schema": name}, timeout=60)
        assert answer.headers["content-type"] == "application/vnd.quorin.snapshot"
        assert answer.headers["quorin-snapshot"].endswith(f"-{len(answer.content):015}.snapshot")
    assert requests.get(servers.quorin.url + "/v1/snapshot?schema=none", timeout=60).status_code == 404


def test_the_machine_is_ready(servers: Servers) -> None:
    ready = requests.get(servers.quorin.url + "/ready", timeout=60)
    assert ready.ok
    assert all(schema["ready"] for schema in ready.json()["schemas"])
    assert len(ready.json()["schemas"]) == 4


def test_options_of_the_command_hold(servers: Servers, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    (tmp_path / "bearer").write_text("correct-horse\n")
    tls = ["--tls-key", str(key), "--tls-cert", str(certificate)]
    words = ["quorin", "serve", "-r", str(servers.repository), "-p", "{port}", "--max-rows", "3", *tls]
    options: dict[str, Any] = {"verify": str(certificate)}
    with serving(
        [*words, "--token-file", str(tmp_path / "bearer")], tmp_path / "log", certificate=certificate
    ) as server:
        for rows, status in ((3, 200), (4, 413)):
            body = {"features": NUMBERS, "entities": {"driver_id": [1001] * rows}}
            assert requests.post(server.url + PATH, json=body, timeout=60, **options).status_code == 401
            headers = {"Authorization": "Bearer correct-horse"}
            assert (
                requests.post(server.url + PATH, json=body, headers=headers, timeout=60, **options).status_code
                == status
            )
        assert requests.get(server.url + "/ready", timeout=60, **options).ok
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(server.url + "/ready", timeout=60)


def test_the_short_way_is_as_feast_describes_it(servers: Servers) -> None:
    """Feast describes no answer but 200 and 422, gives others to features that it does not know, and takes more than it
    describes, such as ``"OFF"`` for a boolean.
    """

    def amend(case: Case) -> None:
        if isinstance(case.body, dict):
            case.body |= {"features": NUMBERS, "feature_service": None, "entities": {"driver_id": [1001, 7]}}

    excluded = [positive_data_acceptance, negative_data_rejection, status_code_conformance]
    answered = check_operation(servers.quorin.url, "POST", PATH, amend=amend, excluded_checks=excluded)
    sent = [(case.body, status) for case, status in answered if isinstance(case.body, dict)]
    assert len([status for _, status in sent if status == 200]) > 5
    for body, status in sent:
        assert (requests.post(servers.feast.url + PATH, json=body, timeout=60).status_code, body) == (status, body)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--repo", "."], "feature_store.yaml"),
        (["--metrics", "--workers", "2"], "expected one worker with Feast's metrics"),
        (["--tls-key", __file__], "expected both --tls-key and --tls-cert"),
        (["--token-file", "empty"], "expected a token of printable ASCII in empty"),
        (["--max-lag", "soon"], "soon"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused(servers: Servers, words: list[str], reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    words = words if "--repo" in words else ["--repo", str(servers.repository), *words]
    refused = run_quorin(["serve", *words], {"COLUMNS": "400"}, directory=tmp_path)
    assert refused.returncode == 2
    assert reason in refused.stderr
