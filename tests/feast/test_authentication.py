"""Feast's authentication with ``quorin serve``: the answers and refusals of Feast, decided once in a while a token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from feast import FeatureService, FeatureStore, FeatureView
from feast.permissions.action import AuthzedAction
from feast.permissions.auth.oidc_token_parser import OidcTokenParser
from feast.permissions.auth_model import OidcAuthConfig
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy

from feast_quorin.remote import messages
from feast_quorin.server.authentication import CachedTokens
from tests.feast.repos import REQUESTS as SHARED_REQUESTS
from tests.feast.test_server import PATH, as_json, make_repository
from tests.support.authorities import Kubernetes, OpenId, kubernetes, running
from tests.support.commands import run_quorin
from tests.support.http import Running, request_series, serving

CACHE_SECONDS = 1
ALLOWED = {"features": ["driver_stats:conv_rate", "driver_stats:acc"], "entities": {"driver_id": [1001, 7, 1002]}}
FORBIDDEN = {"features": ["driver_stats:acc", "customer_stats:score"], "entities": {"driver_id": [1], "customer": [""]}}
SERVICE = as_json(SHARED_REQUESTS["a service with aliases"])
REQUESTS = {"allowed": ALLOWED, "forbidden": FORBIDDEN, "service": SERVICE}


def permissions(role: str) -> list[Permission]:
    """Who has the role may read one view and all services."""
    policy, actions = RoleBasedPolicy(roles=[role]), [AuthzedAction.READ_ONLINE]
    views: Any = {"types": [FeatureView], "name_patterns": ["driver_stats"]}
    return [
        Permission(name="drivers", policy=policy, actions=actions, **views),
        Permission(name="services", types=[FeatureService], policy=policy, actions=actions),
    ]


def ask(server: Running, token: str | None, body: Any = ALLOWED, **headers: str) -> requests.Response:
    bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
    return requests.post(server.url + PATH, json=body, headers={**bearer, **headers}, timeout=60)


def same(servers: Servers, body: Any, headers: dict[str, str]) -> requests.Response:
    """The answer, which stays that of Feast when the token is known."""
    expected, *found = (
        requests.post(server.url + PATH, json=body, headers=headers, timeout=60)
        for server in (servers.feast, servers.quorin, servers.quorin)
    )
    for answer in found:
        assert (answer.status_code, answer.json()) == (expected.status_code, expected.json())
    return expected


class Servers(NamedTuple):
    feast: Running
    quorin: Running
    store: FeatureStore
    authority: Any
    shm: Path


def starts(folder: Path, data: Path, authority: Any, auth: dict[str, Any], **environment: str) -> Iterator[Servers]:
    repository = folder / "repository"
    store = make_repository(repository, data, folder / "segments", auth=auth)
    store.apply(permissions("reader"))
    wrapper = ["tests.support.in_cluster"] if environment else []
    feast = [*wrapper, "feast.cli.cli", "-c", str(repository), "serve", "-p", "{port}"]
    quorin = [*wrapper, "quorin", "serve", "-r", str(repository), "-p", "{port}"]
    quorin += ["--auth-cache-seconds", str(CACHE_SECONDS)]
    with (
        serving(feast, folder / "feast.log", **environment) as one,
        serving(quorin, folder / "quorin.log", QUORIN_SHM_DIR=str(folder), **environment) as two,
    ):
        yield Servers(one, two, store, authority, folder)


@pytest.fixture(scope="module")
def cluster(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("cluster")
    with kubernetes(folder) as (api, environment):
        yield from starts(folder, data, api, {"type": "kubernetes"}, **environment)


@pytest.fixture(scope="module")
def provider(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    openid = OpenId()
    with running(openid):
        auth = {"type": "oidc", "client_id": "feast", "auth_discovery_url": openid.url + "/openid-configuration"}
        yield from starts(tmp_path_factory.mktemp("provider"), data, openid, auth)


def forget() -> None:
    """Wait until no decision is kept that was made before."""
    time.sleep(CACHE_SECONDS + 0.1)


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize(
    "header",
    [
        "Bearer {reader}",
        "bearer {reader}",
        "Bearer  {reader}",
        "Bearer {reader} ",
        "Bearer {writer}",
        "Bearer unknown",
        "Bearer unknown words",
        "Bearer",
        "Basic {reader}",
        "",
        None,
    ],
    ids=str,
)
def test_answers_and_refusals_are_those_of_feast(cluster: Servers, header: str | None, request_name: str) -> None:
    api: Kubernetes = cluster.authority
    tokens = {"reader": api.account("reader", "reader"), "writer": api.account("writer", "writer", "other")}
    headers = {} if header is None else {"Authorization": header.format(**tokens)}
    answer = same(cluster, REQUESTS[request_name], headers)
    is_reader = header is not None and "earer" in header and "reader" in header
    assert answer.ok == (is_reader and request_name != "forbidden")
    assert answer.status_code in (200, 401, 403)


@pytest.mark.parametrize("query", ["?project=shop", "?project=other"])
def test_a_query_that_names_a_project_counts_as_in_feast(cluster: Servers, query: str) -> None:
    headers = {"Authorization": f"Bearer {cluster.authority.account('reader', 'reader')}"}
    for _ in range(2):
        expected, found = (
            requests.post(server.url + PATH + query, json=ALLOWED, headers=headers, timeout=60)
            for server in (cluster.feast, cluster.quorin)
        )
        assert (found.status_code, found.json()) == (expected.status_code, expected.json())


def test_the_first_of_two_tokens_counts_as_in_feast(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    known = api.account("reader", "reader")
    for first, second, is_ok in ((known, "unknown", True), ("unknown", known, False)):
        for server in (cluster.feast, cluster.quorin, cluster.quorin):
            headers: Any = [("Authorization", f"Bearer {token}") for token in (first, second)]
            assert posted_twice_authorized(server, headers) == (200 if is_ok else 401)


def posted_twice_authorized(server: Running, headers: list[tuple[str, str]]) -> int:
    from http.client import HTTPConnection
    from json import dumps

    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = dumps(ALLOWED).encode()
    connection.putrequest("POST", PATH)
    for name, value in [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]:
        connection.putheader(name, value)
    connection.endheaders(body)
    status = connection.getresponse().status
    connection.close()
    return status


def test_known_readers_are_answered_on_the_short_way_and_nobody_is_asked(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    token = api.account("frequent", "reader")
    assert ask(cluster.quorin, token).ok
    api.asked.clear()
    ways = [("requests_total", PATH, "2xx", way) for way in ("short", "application")]
    before = request_series(cluster.shm)
    started, count = time.monotonic(), 0
    while time.monotonic() - started < CACHE_SECONDS * 3:
        count += ask(cluster.quorin, token).ok
    after = request_series(cluster.shm)
    short, long = (after[way] - before.get(way, 0) for way in ways)
    assert short + long == count
    assert api.asked["tokenreviews"] <= 2 * long
    assert long <= (time.monotonic() - started) / CACHE_SECONDS + 1


def test_many_requests_with_a_new_token_ask_once(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    token = api.account("sudden", "reader")
    forget()
    api.asked.clear()
    api.delay_seconds = 0.1
    try:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: ask(cluster.quorin, token).status_code, range(12)))
    finally:
        api.delay_seconds = 0.0
    assert answers == [200] * 12
    assert api.asked["tokenreviews"] <= 4, "Feast's parser asks once, Quorin once more; a slow machine may ask again"


def test_several_tokens_at_once_get_what_each_may(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    roles = ["reader", "writer", "reader", "other", "reader", "none"]
    tokens = [api.account(f"one-of-many-{number}", role) for number, role in enumerate(roles)]
    expected = [200 if role == "reader" else 403 for role in roles] * 8
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda token: ask(cluster.quorin, token).status_code, tokens * 8)) == expected


def test_arrow_is_for_readers_only(cluster: Servers) -> None:
    arrow = "application/vnd.apache.arrow.stream"
    api: Kubernetes = cluster.authority
    answer = ask(cluster.quorin, api.account("columns", "reader"), Accept=arrow)
    with pa.ipc.open_stream(answer.content) as stream:
        assert stream.read_all().num_rows == 3
    assert ask(cluster.quorin, api.account("no-columns", "other"), Accept=arrow).status_code == 403


@pytest.mark.parametrize("path", [PATH, "/quorin/read", "/quorin/write"])
@pytest.mark.parametrize("role", ["reader", "writer", None])
def test_remote_stores_are_refused(cluster: Servers, path: str, role: str | None) -> None:
    headers = {"Content-Type": "application/vnd.apache.arrow.stream"}
    if role is not None:
        headers["Authorization"] = f"Bearer {cluster.authority.account(f'remote-{role}', role)}"
    message = messages.message({"driver_id": pa.array([1001])}, features=["driver_stats:acc"])
    answer = requests.post(cluster.quorin.url + path, message, headers=headers, timeout=60)
    assert answer.status_code == (401 if path == PATH and role is None else 501)


@pytest.mark.parametrize("path", ["/", "/v1/schemas", "/v1/snapshot?schema=driver_stats"])
def test_the_page_and_snapshots_are_not_served(cluster: Servers, path: str) -> None:
    assert requests.get(cluster.quorin.url + path, timeout=60).status_code == 404


def test_a_revoked_token_is_refused_within_the_stated_time(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    token = api.account("revoked", "reader")
    assert ask(cluster.quorin, token).ok
    del api.tokens[token]
    forget()
    assert ask(cluster.quorin, token).status_code == 401


def test_a_role_that_is_taken_away_counts_within_the_stated_time(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    token = api.account("demoted", "reader")
    assert ask(cluster.quorin, token).ok
    api.roles["demoted"] = []
    forget()
    assert ask(cluster.quorin, token).status_code == 403
    api.roles["demoted"] = ["reader"]
    forget()
    assert ask(cluster.quorin, token).ok


def test_permissions_that_are_applied_count_within_the_stated_time(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    reader, other = api.account("before", "reader"), api.account("after", "other")
    for role, expected in (("reader", [200, 403]), ("other", [403, 200]), ("reader", [200, 403])):
        cluster.store.apply(permissions(role))
        forget()
        assert [ask(cluster.quorin, token).status_code for token in (reader, other)] == expected


def test_a_token_that_only_names_an_account_is_refused(cluster: Servers) -> None:
    """What a token says of itself counts for nothing, unless the API server knows the token."""
    api: Kubernetes = cluster.authority
    forged = api.account("forged", "reader")
    del api.tokens[forged]
    assert [ask(cluster.quorin, forged).status_code for _ in range(3)] == [401] * 3


def test_nobody_new_is_let_in_while_the_api_server_is_away(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    known, new = api.account("known", "reader"), api.account("new", "reader")
    assert ask(cluster.quorin, known).ok
    api.is_away = True
    try:
        assert ask(cluster.quorin, new).status_code == 401
        forget()
        assert ask(cluster.quorin, known).status_code == 401
    finally:
        api.is_away = False
    forget()
    assert [ask(cluster.quorin, token).status_code for token in (known, new)] == [200, 200]


def test_other_paths_of_feast_remember_tokens_too(cluster: Servers) -> None:
    api: Kubernetes = cluster.authority
    headers = {"Authorization": f"Bearer {api.account('patient', 'reader')}"}
    api.asked.clear()
    url = cluster.quorin.url + "/v1/vector_stores"
    started, count = time.monotonic(), 0
    while time.monotonic() - started < CACHE_SECONDS:
        assert requests.get(url, headers=headers, timeout=60).ok
        count += 1
    assert api.asked["tokenreviews"] <= 4 < count
    assert requests.get(url, headers={"Authorization": "Bearer unknown"}, timeout=60).status_code == 401


OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"user": "ann", "roles": ["reader"]}, 200),
        ({"user": "bob", "roles": ["writer"]}, 403),
        ({"user": "eve", "roles": []}, 403),
        ({"user": "ann", "roles": ["reader"], "seconds": -60}, 401),
        ({"user": "ann", "roles": ["reader"], "key": OTHER_KEY}, 401),
        ({"user": "ann", "roles": ["reader"], "key_id": "unknown"}, 401),
    ],
    ids=["allowed", "denied", "no role", "expired", "wrong signature", "unknown key"],
)
def test_signed_tokens_count_as_in_feast(
    provider: Servers, claims: dict[str, Any], status: int, request_name: str
) -> None:
    openid: OpenId = provider.authority
    options = dict(claims)
    token = openid.token(options.pop("user"), *options.pop("roles"), **options)
    answer = same(provider, REQUESTS[request_name], {"Authorization": f"Bearer {token}"})
    assert answer.status_code == (403 if status == 200 and request_name == "forbidden" else status)


@pytest.mark.parametrize("token", ["a.b.c", "nonsense", "", None])
def test_what_is_no_signed_token_is_refused_as_by_feast(provider: Servers, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    assert same(provider, ALLOWED, headers).status_code == 401


def test_nothing_is_kept_beyond_the_end_of_a_token_and_no_token_is_kept() -> None:
    openid = OpenId()

    async def deadline(seconds: float) -> float:
        url = openid.url + "/openid-configuration"
        tokens = CachedTokens(OidcTokenParser(OidcAuthConfig(type="oidc", auth_discovery_url=url)), 60)
        token = openid.token("ann", seconds=seconds)
        known = await tokens.look_up(token)
        assert known.user is not None
        assert tokens.cached(token) is known
        assert [len(key) for key in tokens._users] == [32]
        return known.deadline

    with running(openid):
        now = time.monotonic()
        assert asyncio.run(deadline(40)) <= now + 41 < asyncio.run(deadline(3600)) <= time.monotonic() + 60


def test_a_token_of_the_server_beside_authentication_is_refused(provider: Servers, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("correct-horse")
    words = ["serve", "--repo", str(provider.store.repo_path), "--token-file", str(tmp_path / "token")]
    refused = run_quorin(words, {"COLUMNS": "400"}, directory=tmp_path)
    assert refused.returncode == 2
    assert "expected a token or `auth` in feature_store.yaml, got both: `auth: {type: oidc}`" in refused.stderr
