"""The server of segments against its own OpenAPI description."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.described import check_operation
from tests.support.http import Running
from tests.support.segment_site import make_site, serving_site

READS = ["/", "/health", "/openapi.json", "/ready", "/v1/schemas"]
SNAPSHOT = "/v1/snapshot"
QUERIES = ["/v1/assemble", "/v1/changes", "/v1/last", "/v1/read"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("site")
    with serving_site(make_site(folder), folder / "log") as running:
        yield running


def test_the_description_names_every_path(server: Running) -> None:
    paths = requests.get(server.url + "/openapi.json", timeout=60).json()["paths"]
    described = sorted((method, path) for path in paths for method in paths[path])
    assert described == [*(("get", path) for path in [*READS, SNAPSHOT]), *(("post", path) for path in QUERIES)]


@pytest.mark.parametrize("path", READS)
def test_what_is_read_is_as_described(server: Running, path: str) -> None:
    check_operation(server.url, "GET", path)


def test_snapshots_are_as_described(server: Running) -> None:
    def amend(case: Case) -> None:
        case.query["schema"] = "Driver"

    check_operation(server.url, "GET", SNAPSHOT, excluded_checks=[positive_data_acceptance])
    options = {"modes": [GenerationMode.POSITIVE], "amend": amend, "excluded_checks": [positive_data_acceptance]}
    statuses = {status for _, status in check_operation(server.url, "GET", SNAPSHOT, **options)}
    assert {200, 406} == statuses


def hurried(case: Case) -> None:
    """No segment shows a token that was made up: a request for one waits as long as it says."""
    if str((case.headers or {}).get("Quorin-Timeout-Ms", 100)).isdigit():
        case.headers["Quorin-Timeout-Ms"] = "2"


@pytest.mark.parametrize("path", QUERIES)
def test_answers_to_any_request_are_as_described(server: Running, path: str) -> None:
    """No description says which fields there are, and that columns have one length: 422 is an answer to such."""
    check_operation(server.url, "POST", path, amend=hurried, excluded_checks=[positive_data_acceptance])


@pytest.mark.parametrize("path", [path for path in QUERIES if path != "/v1/last"])
def test_valid_requests_for_schemas_that_are_there_are_answered(server: Running, path: str) -> None:
    def amend(case: Case) -> None:
        case.headers["Quorin-At-Least"] = "q1"
        if not isinstance(case.body, dict):
            return  # A body for Arrow, which the description calls a string.
        if path == "/v1/changes":
            # The description says what a token looks like, and not of which log.
            position = "q1" if isinstance(case.body["position"], str) else case.body["position"]
            case.body |= {"schema": "Everything", "fields": None, "position": position}
            return
        if path == "/v1/read":
            case.body |= {"schema": "Everything", "fields": None} | with_field(case.body, "i64")
            return
        count = min(map(len, case.body["entities"].values()))
        case.body["entities"] = {name: ids[:count] for name, ids in case.body["entities"].items()}
        for part in case.body["schemas"]:
            part |= {"schema": "Driver", "entity": next(iter(case.body["entities"])), "fields": ["embedding", "rate"]}
            part |= with_field(part, "rate")

    def with_field(request: dict[str, Any], field: str) -> dict[str, Any]:
        """The request's age limit for a field that there is."""
        limits = request.get("max_age")
        return {"max_age": {field: next(iter(limits.values()))}} if isinstance(limits, dict) else {}

    options = {"modes": [GenerationMode.POSITIVE], "amend": amend, "excluded_checks": [positive_data_acceptance]}
    answered = check_operation(server.url, "POST", path, **options)
    statuses = [status for case, status in answered if isinstance(case.body, dict)]
    assert len(statuses) > 5
    assert set(statuses) == {200}
