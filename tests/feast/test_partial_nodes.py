"""Feast on machines that hold some partitions: they answer for all entities, as one that holds all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pandas as pd
import pytest
import requests
import yaml
from feast import FeatureStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given, settings

import feast_quorin
from feast_quorin.read.options import current
from feast_quorin.server.online_features import OnlineFeatures
from quorin.engine.format.partition import partition_of
from quorin.errors import HoldersUnavailableError, NotHeldError
from quorin.http import Limits, Reply
from tests.equivalence.test_compiled import generic
from tests.feast.repos import CUSTOMERS, DRIVER_FEATURES, DRIVERS, END, REQUESTS, START, ask, day, definitions
from tests.support.http import Running, serving
from tests.support.partial_nodes import PARTITIONS, PartialNodes

HALVES = ["low", "high"]


class Site(NamedTuple):
    """A store and a server of each machine: one with all partitions, which no other asks, and two with a half each."""

    nodes: PartialNodes
    stores: dict[str, FeatureStore]
    servers: dict[str, Running]


def repository(folder: Path, nodes: PartialNodes, name: str, **settings: Any) -> Path:
    """The repository of a machine; all have one registry."""
    repo = folder / f"repo-{name}"
    repo.mkdir(exist_ok=True)
    online_store = {"type": "quorin", "path": str(folder / "store"), "shm_dir": str(nodes[name].shm_dir)}
    online_store |= {"consumer": "external", "wait": "logged", "capacity": 64, "peer_timeout_ms": 60_000, **settings}
    config = {"project": "shop", "provider": "local", "registry": str(folder / "registry.db")}
    config |= {"online_store": online_store, "entity_key_serialization_version": 3}
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return repo


@pytest.fixture(scope="module")
def site(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("partial")
    nodes = PartialNodes(folder, str(folder / "store"), {"full": None, "low": "0-1", "high": "2-3"})
    repos = {name: repository(folder, nodes, name) for name in nodes.nodes}
    stores = {name: FeatureStore(repo_path=str(repo)) for name, repo in repos.items()}
    stores["full"].apply(definitions(data))
    stores["full"].materialize(START, END)
    nodes.drain()
    with ExitStack() as stack:
        servers = {}
        for name, repo in repos.items():
            words = ["quorin", "serve", "-r", str(repo), "-p", "{port}"]
            words += ["--advertise", "http://127.0.0.1:{port}"] if name in HALVES else []
            servers[name] = stack.enter_context(serving(words, folder / f"{name}.log"))
        nodes.report()
        yield Site(nodes, stores, servers)
    nodes.close()


def forms(response: Any) -> list[Any]:
    """All forms of an answer."""
    frame, table = response.to_df(include_event_timestamps=True), response.to_arrow(include_event_timestamps=True)
    frames = [repr(frame.to_dict("list")), frame.dtypes.tolist(), repr(table.to_pylist()), table.schema]
    values = [repr(response.to_dict(include_event_timestamps=True)), response.positions()]
    proto = response.proto
    return [*values, *frames, [(list(one.statuses), list(one.event_timestamps)) for one in proto.results]]


@pytest.mark.parametrize("name", REQUESTS)
def test_every_kind_of_request_is_answered_as_by_a_whole_machine(site: Site, name: str) -> None:
    expected = forms(ask(site.stores["full"], name))
    for half in HALVES:
        assert forms(ask(site.stores[half], name)) == expected


asked = st.fixed_dictionaries(
    {
        "features": st.lists(
            st.sampled_from([f"driver_stats:{name}" for name in DRIVER_FEATURES if name not in ("blob", "prefs")])
            | st.sampled_from(["customer_stats:score", "customer_stats:city", "pair_stats:rides", "world:fuel_price"]),
            min_size=1,
            max_size=6,
            unique=True,
        ),
        "entities": st.integers(1, 12).flatmap(
            lambda n: st.fixed_dictionaries(
                {
                    "driver_id": st.lists(st.sampled_from([*DRIVERS, 7, 8]), min_size=n, max_size=n),
                    "customer": st.lists(st.sampled_from([*CUSTOMERS, "no"]), min_size=n, max_size=n),
                }
            )
        ),
        "full_feature_names": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None)
@given(request=asked)
def test_generated_requests_over_http_and_in_a_process(site: Site, request: dict[str, Any]) -> None:
    path, headers = "/get-online-features", {"Quorin-Positions": "true", "Accept-Encoding": "identity"}
    expected, *others = (
        requests.post(site.servers[name].url + path, json=request, headers=headers, timeout=60)
        for name in ("full", *HALVES)
    )
    assert [one.status_code for one in (expected, *others)] == [200] * 3, [one.text for one in (expected, *others)]
    assert [one.json() for one in others] == [expected.json()] * 2
    arguments = {**request, "entity_rows": request["entities"]}
    del arguments["entities"]
    answers = [forms(store.get_online_features(**arguments)) for store in site.stores.values()]
    assert answers == [answers[0]] * 3


def test_reads_in_an_event_loop_are_completed(site: Site) -> None:
    request = {"features": ["driver_stats:trips", "driver_stats:nick"], "entity_rows": {"driver_id": DRIVERS}}
    answers = [
        asyncio.run(store.get_online_features_async(**request)).to_dict(include_event_timestamps=True)
        for store in site.stores.values()
    ]
    assert answers == [answers[0]] * 3


def test_age_limits_hold_for_rows_of_other_machines(site: Site) -> None:
    request = {"features": ["driver_stats:trips", "customer_stats:score"]}
    request["entity_rows"] = [{"driver_id": one, "customer": "alice"} for one in DRIVERS]
    with feast_quorin.max_age({"driver_stats": 60, "customer_stats": 10**9}):
        answers = [forms(store.get_online_features(**request)) for store in site.stores.values()]
    assert "None" in answers[0][0]
    assert answers == [answers[0]] * 3


def test_feasts_own_path_reads_other_machines_too(site: Site) -> None:
    answers = []
    for store in site.stores.values():
        view = store.get_feature_view("driver_stats")
        keys = [feast_key(driver) for driver in [*DRIVERS, 7]]
        answers.append(store.provider.online_store.online_read(store.config, view, keys, ["trips", "tags"]))
    assert any(row[0] is not None for row in answers[0])
    assert answers == [answers[0]] * 3


def feast_key(driver: int) -> Any:
    return EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=driver)])


def test_a_remote_store_of_a_partial_machine_has_all_rows(site: Site, tmp_path: Path) -> None:
    remote = repository(tmp_path, site.nodes, "low")
    config = yaml.safe_load((remote / "feature_store.yaml").read_text())
    config["online_store"] = {"type": "quorin", "remote": site.servers["low"].url, "timeout_ms": 60_000}
    config["registry"] = str(site.nodes.folder / "registry.db")
    (remote / "feature_store.yaml").write_text(yaml.safe_dump(config))
    store = FeatureStore(repo_path=str(remote))
    for name in ("every type", "composite keys", "a service with aliases"):
        answers = [ask(one, name).to_dict(include_event_timestamps=True) for one in (store, site.stores["full"])]
        # Feast resolves the features of a view in any order.
        first, second = ({feature: repr(values) for feature, values in one.items()} for one in answers)
        assert first == second


def test_the_short_way_answers_at_once_what_is_held_here(site: Site) -> None:
    """Whatever was asked before. The rest is awaited, in the same way with a pin of another view."""
    held, elsewhere = (
        [one for one in range(1000, 1010) if (partition_of(str(one), PARTITIONS) < 2) is is_low]
        for is_low in (True, False)
    )
    pin = site.nodes["low"].registry.generations("shop__customer_stats")[0].number
    online = OnlineFeatures(site.stores["low"], Limits())

    async def asked(drivers: list[int], pinned: bool) -> tuple[bool, Any]:
        body = json.dumps({"features": ["driver_stats:trips"], "entities": {"driver_id": drivers}}).encode()
        headers = [(b"content-type", b"application/json")]
        headers += [(b"quorin-pin", json.dumps({"customer_stats": pin}).encode())] if pinned else []
        reply = online.direct(body, headers)
        assert current().may_wait
        is_at_once = isinstance(reply, Reply)
        found = reply if isinstance(reply, Reply | None) else await reply
        assert found is not None
        return is_at_once, json.loads(found.body)["results"][1]["values"]

    async def in_turn() -> None:
        for pinned in (False, True):
            for drivers in (held, elsewhere, held[:1], elsewhere[:1], held + elsewhere, held):
                expected = site.stores["full"].get_online_features(["driver_stats:trips"], {"driver_id": drivers})
                is_held = not {*drivers} & {*elsewhere}
                assert await asked(drivers, pinned) == (is_held, expected.to_dict()["trips"])

    asyncio.run(in_turn())


PEOPLE = [f"c{number}" for number in range(20)]


def push(site: Site, score: float, at: int, customers: list[str]) -> None:
    rows = {"customer": customers, "at": day(at), "score": score, "city": "x"}
    site.stores["full"].push("customer_push", pd.DataFrame(rows))
    site.nodes.drain()


def pinned_repository(site: Site, folder: Path, name: str, **settings: Any) -> Path:
    """A repository of a machine of the site, with other settings."""
    repo = repository(folder, site.nodes, name, path=str(site.nodes.folder / "store"), **settings)
    config = yaml.safe_load((repo / "feature_store.yaml").read_text())
    config["registry"] = str(site.nodes.folder / "registry.db")
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return repo


@pytest.mark.parametrize("half", HALVES)
def test_a_pinned_read_has_the_rows_of_this_machine_or_is_refused(site: Site, tmp_path: Path, half: str) -> None:
    """Never the rows of another machine, whose generations are others."""
    older, at = (1.0, 10) if half == "low" else (3.0, 30)
    push(site, older, at, PEOPLE)
    store, registry = site.stores[half], site.nodes[half].registry
    number = registry.generations("shop__customer_stats")[0].number
    is_held = {one: (partition_of(one, PARTITIONS) < 2) == (half == "low") for one in PEOPLE}
    held = [one for one in PEOPLE if is_held[one]]
    masking = FeatureStore(repo_path=str(pinned_repository(site, tmp_path, half, missing_partitions="mask")))
    features = ["customer_stats:score"]
    with feast_quorin.at_generation({"customer_stats": number}):
        assert store.get_online_features(features, {"customer": held}).to_dict()["score"] == [older] * len(held)
        push(site, 0.0, at, [f"{half}{more}" for more in range(400)])
        assert registry.generations("shop__customer_stats")[0].number > number, "it has grown"
        push(site, older + 1, at + 1, PEOPLE)
        request: dict[str, Any] = {"features": features, "entity_rows": {"customer": held}}
        for one in (store.get_online_features(**request), generic(store, **request)):
            assert one.to_dict()["score"] == [older] * len(held)
        for customers in ([one] for one in PEOPLE):
            request["entity_rows"] = {"customer": customers}
            if is_held[customers[0]]:
                assert store.get_online_features(**request).to_dict()["score"] == [older]
            else:
                for read in (store.get_online_features, lambda **asked: generic(store, **asked)):
                    with pytest.raises(NotHeldError, match="of 'shop__customer_stats' is not held by this node"):
                        read(**request)
        masked = masking.get_online_features(features, {"customer": PEOPLE}).to_dict()["score"]
        assert masked == [older if is_held[one] else None for one in PEOPLE]
        for customers in (held, held * 200, PEOPLE, PEOPLE * 200):  # At once, and in a thread.
            body = {"features": features, "entities": {"customer": customers}}
            answers = [
                requests.post(site.servers[half].url + "/get-online-features", json=body, headers=headers, timeout=60)
                for headers in ({"Quorin-Pin": json.dumps({"customer_stats": number})}, {})
            ]
            assert answers[1].json()["results"][1]["values"] == [older + 1] * len(customers)
            if set(customers) <= set(held):
                assert answers[0].json()["results"][1]["values"] == [older] * len(customers)
            else:
                assert (answers[0].status_code, answers[0].json()["error"]) == (503, "NotHeldError")
    assert store.get_online_features(features, {"customer": PEOPLE}).to_dict()["score"] == [older + 1] * 20


def test_a_killed_machine_is_an_error_or_masked(site: Site) -> None:
    """The last test here: the server of the high half does not come back."""
    folder = site.nodes.folder
    masking = repository(folder, site.nodes, "low", missing_partitions="mask", peer_timeout_ms=5_000)
    os.kill(site.servers["high"].process.pid, signal.SIGKILL)
    site.servers["high"].process.wait(60)
    request = {"features": ["driver_stats:trips"], "entity_rows": {"driver_id": DRIVERS}}
    with pytest.raises(HoldersUnavailableError, match=r"partition [23] of 'shop__driver_stats' is not held .*refused"):
        site.stores["low"].get_online_features(**request)
    body = {"features": request["features"], "entities": request["entity_rows"]}
    answer = requests.post(site.servers["low"].url + "/get-online-features", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (503, "HoldersUnavailableError")
    held = FeatureStore(repo_path=str(masking)).get_online_features(**request).to_dict()["trips"]
    expected = site.stores["full"].get_online_features(**request).to_dict()["trips"]
    assert None in held
    assert any(held)
    assert all(one in (None, other) for one, other in zip(held, expected, strict=True))
