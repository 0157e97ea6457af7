"""Pins of one request and of one feature service: an old model and a new one read the same store."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import requests
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, ValueType
from feast.types import Float64, Int64, String

import feast_quorin
from feast_quorin import at_generation
from feast_quorin.config import ConfigError
from feast_quorin.read.response import LazyResponse
from feast_quorin.read.row_response import RowResponse
from feast_quorin.remote.response import RemoteResponse
from feast_quorin.server.online_features import OnlineFeatures
from quorin.errors import GenerationNotFoundError, InvalidPinError, PinLimitError
from quorin.http import Limits
from quorin.shm import Generation, SegmentRegistry
from tests.equivalence.test_compiled import generic
from tests.feast.repos import day, make_store
from tests.feast.served import Served, served
from tests.feast.test_against_sqlite import same
from tests.feast.test_kinds import source
from tests.support.world import until

KEY = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
ROWS = [{"key": key} for key in (1, 2, 3)]
AMOUNT, NAME, RANK, STOCK = (
    Field(name=name, dtype=kind)
    for name, kind in (("amount", Float64), ("name", String), ("rank", Int64), ("stock", Int64))
)
FEATURES = ["prices:amount", "goods:stock"]


def objects(folder: Path, *fields: Field) -> list[Any]:
    """Two views, and two services of the same features."""
    views = [
        FeatureView(
            name=name,
            entities=[KEY],
            schema=list(chosen),
            source=PushSource(name=f"push_{name}", batch_source=source(folder, name)),
        )
        for name, chosen in (("prices", fields or (AMOUNT, NAME)), ("goods", (STOCK,)))
    ]
    services = [FeatureService(name=name, features=[views[0][["amount"]], views[1]]) for name in ("old", "new")]
    return [KEY, *views, *services]


def frame(at: int, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"key": [1, 2], "at": [day(at)] * 2} | columns)


def replace(store: FeatureStore, at: int, *amounts: float) -> None:
    """A new generation with other rows: the one before is kept, and gets no more rows."""
    table = pa.Table.from_pandas(frame(at, amount=list(amounts), name=["x", "y"]))
    view = store.get_feature_view("prices")
    store.provider.online_store.replace_table(store.config, view, table, None)


def registry_of(store: FeatureStore) -> SegmentRegistry:
    registry: SegmentRegistry = store.provider.online_store.registry(store.config)
    return registry


def generations(store: FeatureStore) -> list[Generation]:
    return registry_of(store).generations("shop__prices")


def asked(store: FeatureStore, features: Any = FEATURES) -> dict[str, list[Any]]:
    """The compiled answer for all rows, which is that of Feast's own path, of each row alone, and of ``async``."""
    request: dict[str, Any] = {"features": features, "entity_rows": ROWS}
    answer = store.get_online_features(**request)
    assert isinstance(answer, LazyResponse)
    same(answer, generic(store, **request))
    same(answer, asyncio.run(store.get_online_features_async(**request)))
    found: dict[str, list[Any]] = answer.to_dict()
    for number, row in enumerate(ROWS):
        one = store.get_online_features(features=features, entity_rows=[row])
        assert isinstance(one, RowResponse)
        assert {name: values[number : number + 1] for name, values in found.items()} == one.to_dict()
    return found


def amounts(store: FeatureStore, features: Any = FEATURES) -> list[Any]:
    return asked(store, features)["amount"]


@pytest.fixture
def settings(online_store: dict[str, Any]) -> dict[str, Any]:
    return {**online_store, "keep_generations": 3}


@pytest.fixture
def store(settings: dict[str, Any], tmp_path: Path) -> Iterator[FeatureStore]:
    store = make_store(tmp_path / "repo", settings, data=tmp_path)
    store.apply(objects(tmp_path))
    store.push("push_prices", frame(0, amount=[1.0, 2.0], name=["a", "b"]))
    store.push("push_goods", frame(0, stock=[10, 20]))
    yield store
    store.teardown()
    assert list(Path(settings["shm_dir"]).glob("quorin_shop*")) == []


def test_requests_in_a_block_read_their_generation_and_others_the_current_one(store: FeatureStore) -> None:
    first = generations(store)[0].number
    replace(store, 1, 5.0, 6.0)
    second = generations(store)[0].number
    replace(store, 2, 7.0, 8.0)
    assert amounts(store) == [7.0, 8.0, None]
    with at_generation({"prices": first}):
        assert amounts(store) == [1.0, 2.0, None]
        with at_generation({"prices": second}):
            assert amounts(store) == [5.0, 6.0, None]
        store.push("push_goods", frame(3, stock=[11, 21]))  # A view without a pin is read as ever.
        store.push("push_prices", frame(3, amount=[9.0, 9.5], name=["n", "m"]))  # Writes go to what is current.
        assert asked(store) == {"key": [1, 2, 3], "amount": [1.0, 2.0, None], "stock": [11, 21, None]}
        service = store.get_feature_service("new")
        assert amounts(store, service) == [1.0, 2.0, None]
        assert [one.number for one in generations(store) if one.is_pinned] == [second, first]
    assert amounts(store) == [9.0, 9.5, None]
    assert amounts(store, service) == [9.0, 9.5, None]


def test_the_rows_of_one_view_are_those_of_the_generation(store: FeatureStore) -> None:
    first = generations(store)[0].number
    replace(store, 1, 5.0, 6.0)
    online, view = store.provider.online_store, store.get_feature_view("prices")
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    keys = [EntityKey(join_keys=["key"], entity_values=[Value(int64_val=1)])]
    with at_generation({"prices": str(first)}):
        ((_, values),) = online.online_read(store.config, view, keys, ["amount"])
        assert values["amount"].double_val == 1.0
        assert asyncio.run(online.online_read_async(store.config, view, keys, ["amount"]))[0][1] == values
    ((_, values),) = online.online_read(store.config, view, keys, ["amount"])
    assert values["amount"].double_val == 5.0


def test_tasks_and_threads_have_pins_of_their_own(store: FeatureStore) -> None:
    first = generations(store)[0].number
    replace(store, 1, 5.0, 6.0)

    async def ask(pins: dict[str, Any] | None) -> list[Any]:
        if pins is None:
            await asyncio.sleep(0)
            return list((await store.get_online_features_async(FEATURES, ROWS)).to_dict()["amount"])
        with at_generation(pins):
            await asyncio.sleep(0)
            return list((await store.get_online_features_async(FEATURES, ROWS)).to_dict()["amount"])

    async def together() -> list[list[Any]]:
        return await asyncio.gather(ask({"prices": first}), ask(None), ask({"goods": "v1"}), ask({"prices": first}))

    assert asyncio.run(together()) == [[1, 2, None], [5, 6, None], [5, 6, None], [1, 2, None]]
    found: list[list[Any]] = []
    with at_generation({"prices": first}):
        other = threading.Thread(target=lambda: found.append(amounts(store)))
        other.start()
        other.join()
    assert found == [[5.0, 6.0, None]]


def test_a_version_is_read_in_its_newest_generation(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feast_quorin.pinned_reads._LOOK_SECONDS", 0.0)
    with at_generation({"prices": "v1"}):
        assert amounts(store) == [1.0, 2.0, None]
    replace(store, 1, 5.0, 6.0)
    with at_generation({"prices": "v1"}):
        assert amounts(store) == [5.0, 6.0, None]
        replace(store, 2, 7.0, 8.0)
        assert amounts(store) == [5.0, 6.0, None]  # One block stays with one generation.
    store.apply(objects(tmp_path, AMOUNT, RANK))
    store.push("push_prices", frame(3, amount=[9.0, 9.5], rank=[90, 95]))
    assert [one.schema_version for one in generations(store)][:2] == [2, 1]
    with at_generation({"prices": "v1"}):
        assert amounts(store) == [7.0, 8.0, None]
        for rows in (ROWS, ROWS[:1]):  # A feature that the generation does not have.
            answer = store.get_online_features(["prices:rank"], rows)
            assert answer.to_dict()["rank"] == [None] * len(rows)
    with at_generation({"prices": "v2"}):
        assert asked(store, ["prices:rank"])["rank"] == [90, 95, None]


def test_pins_that_cannot_be_are_refused_by_name(store: FeatureStore) -> None:
    message = r"feature view prices has no generation 77 on this node; there are 1 \(v1, current\)"
    for ask in (amounts, lambda store: generic(store, features=FEATURES, entity_rows=ROWS[:1])):
        with at_generation({"prices": 77}), pytest.raises(GenerationNotFoundError, match=message):
            ask(store)
        with at_generation({"prises": 1}), pytest.raises(InvalidPinError, match="'shop' has no feature view 'prises'"):
            ask(store) if ask is amounts else store.get_online_features(FEATURES, ROWS)
    assert amounts(store) == [1.0, 2.0, None]


@pytest.mark.parametrize("pins", [None, {}, "current", {"prices": "current"}, {"prices": 0}, {"": 1}, {1: 1}, 5])
def test_other_pins_are_refused(pins: Any) -> None:
    with pytest.raises(InvalidPinError, match="pin"), at_generation(pins):
        pass


def test_more_generations_than_may_be_pinned_are_refused(store: FeatureStore) -> None:
    numbers = []
    blocks = []
    for number in range(5):
        numbers.append(generations(store)[0].number)
        block = at_generation({"prices": numbers[-1]})
        block.__enter__()
        blocks.append(block)
        if number < 4:
            assert amounts(store)[2] is None
            replace(store, number + 1, float(number), 0.0)
        else:
            with pytest.raises(PinLimitError, match=r"view prices: generation \d+ cannot be pinned: 4 other"):
                amounts(store)
    for block in reversed(blocks):
        block.__exit__(None, None, None)
    assert amounts(store) == [3.0, 0.0, None]


def test_what_only_a_block_pins_goes_when_it_is_idle(settings: dict[str, Any], tmp_path: Path) -> None:
    store = make_store(tmp_path / "idle", {**settings, "keep_generations": 0}, project="idle", data=tmp_path)
    store.apply(objects(tmp_path))
    store.push("push_prices", frame(0, amount=[1.0, 2.0], name=["a", "b"]))
    reads = store.provider.online_store.reads(store.config)
    registry = registry_of(store)
    with at_generation({"prices": "v1"}):
        assert amounts(store) == [1.0, 2.0, None]
        replace(store, 1, 5.0, 6.0)
        reads.release_idle(0)  # What the block reads from stays with it.
        assert amounts(store) == [1.0, 2.0, None]
        assert [one.state for one in registry.generations("idle__prices")] == ["current", "replaced"]
    reads.release_idle(0)
    until(lambda: [one.state for one in registry.generations("idle__prices")] == ["current"])
    assert amounts(store) == [5.0, 6.0, None]
    store.teardown()


def test_a_service_stays_while_others_go_on(settings: dict[str, Any], tmp_path: Path, store: FeatureStore) -> None:
    first = generations(store)[0].number
    replace(store, 1, 5.0, 6.0)
    second = generations(store)[0].number
    pins: dict[str, Any] = {"old": {"prices": first}, "new": "current"}
    pinned = make_store(tmp_path / "repo", {**settings, "pins": pins}, data=tmp_path)
    old, new = (pinned.get_feature_service(name) for name in ("old", "new"))
    assert amounts(pinned, new) == [5.0, 6.0, None]
    replace(store, 2, 7.0, 8.0)
    store.push("push_goods", frame(3, stock=[11, 21]))
    assert asked(pinned, old) == {"key": [1, 2, 3], "amount": [1.0, 2.0, None], "stock": [11, 21, None]}
    # The other view's generation is still the current one, so what is written to it shows.
    assert asked(pinned, new) == {"key": [1, 2, 3], "amount": [5.0, 6.0, None], "stock": [11, 21, None]}
    assert amounts(pinned) == [7.0, 8.0, None]  # The same features, but not through a service.
    with at_generation({"prices": second}):
        assert amounts(pinned, old) == [5.0, 6.0, None]
        assert amounts(pinned) == [5.0, 6.0, None]
    reader = feast_quorin.model_reader(pinned, features=old)
    matrix = reader(ROWS)
    assert matrix[:2, 0].tolist() == [1.0, 2.0]
    pinned.provider.online_store.release()
    assert not [one for one in generations(store) if one.is_pinned and one.number == first]


def test_pins_of_services_are_checked(settings: dict[str, Any], tmp_path: Path, store: FeatureStore) -> None:
    for pins, message in (
        ({"old": {"prices": "newest"}}, "expected a generation such as 17"),
        ({"old": 5}, "pins"),
        ({"old": {"prices": 0}}, "expected a generation such as 17"),
    ):
        with pytest.raises(ConfigError, match=message):
            feast_quorin.QuorinOnlineStoreConfig(type="quorin", pins=pins)
    for view, kind, message in (
        ("prises", InvalidPinError, r"pins\['old'\]: project 'shop' has no feature view 'prises'"),
        ("prices", GenerationNotFoundError, "feature view prices has no generation 77"),
    ):
        other = make_store(tmp_path / "repo", {**settings, "pins": {"old": {view: 77}}}, data=tmp_path)
        with pytest.raises(kind, match=message):
            other.get_online_features(other.get_feature_service("old"), ROWS)
        assert amounts(other, other.get_feature_service("new")) == [1.0, 2.0, None]


def test_growth_beside_a_pinned_request(store: FeatureStore) -> None:
    """A hundred times the capacity is pushed while a block reads: its rows stay, and those of others are all there."""
    first = generations(store)[0].number
    table = pa.Table.from_pandas(
        pd.DataFrame({"key": range(10, 6410), "at": day(1), "amount": 0.5, "name": "grown"}), preserve_index=False
    )
    view = store.get_feature_view("prices")
    with at_generation({"prices": first}):
        assert amounts(store) == [1.0, 2.0, None]
        store.provider.online_store.write_table(store.config, view, table, None)
        assert generations(store)[0].number > first
        assert store.get_online_features(FEATURES, [{"key": 6409}]).to_dict()["amount"] == [None]
        assert amounts(store) == [1.0, 2.0, None]
    assert store.get_online_features(FEATURES, [{"key": 6409}]).to_dict()["amount"] == [0.5]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    pins = {"old": {"prices": 1}}
    with served(folder / "machine", objects(folder), online_store={"keep_generations": 3, "pins": pins}) as machine:
        machine.local.push("push_prices", frame(0, amount=[1.0, 2.0], name=["a", "b"]))
        machine.local.push("push_goods", frame(0, stock=[10, 20]))
        replace(machine.local, 1, 5.0, 6.0)
        yield machine


def post(machine: Served, pin: str | None = None, accept: str = "application/json", **request: Any) -> Any:
    headers = {"Accept": accept} | ({} if pin is None else {"Quorin-Pin": pin})
    body = {"entities": {"key": [1, 2, 3]}, **(request or {"features": FEATURES})}
    return requests.post(machine.server.url + "/get-online-features", json=body, headers=headers, timeout=60)


def column(answer: Any, name: str) -> list[Any]:
    assert answer.status_code == 200, answer.text
    found = answer.json()
    values: list[Any] = found["results"][found["metadata"]["feature_names"].index(name)]["values"]
    return values


def test_the_server_takes_pins_in_a_header(machine: Served) -> None:
    many = {"features": FEATURES, "entities": {"key": [1] * 2000}}  # The long way: in a thread.
    by_feast = {"features": FEATURES, "entities": {"key": [1]}, "unknown": 1}  # Feast's application answers.
    for _ in range(2):
        assert column(post(machine), "amount") == [5.0, 6.0, None]
        assert column(post(machine, '{"prices": 1}'), "amount") == [1.0, 2.0, None]
        assert column(post(machine, '{"prices": 1}'), "stock") == [10, 20, None]
        assert column(post(machine, '{"prices": "v1"}'), "amount") == [5.0, 6.0, None]
        assert column(post(machine, '{"prices": 1}', **many), "amount") == [1.0] * 2000
        assert column(post(machine, None, **many), "amount") == [5.0] * 2000
        assert column(post(machine, '{"prices": 1}', **by_feast), "amount") == [1.0]
        arrow = post(machine, '{"prices": 1}', accept="application/vnd.apache.arrow.stream")
        with pa.ipc.open_stream(arrow.content) as stream:
            assert stream.read_next_batch().column("amount").to_pylist() == [1.0, 2.0, None]


def test_the_short_way_answers_pinned_requests(machine: Served) -> None:
    online = OnlineFeatures(machine.local, Limits())
    body = json.dumps({"features": FEATURES, "entities": {"key": [1, 2]}}).encode()
    plain = [(b"content-type", b"application/json")]
    for pin, status, values in ((b'{"prices": 1}', 200, [1.0, 2.0]), (b'{"prices": 77}', 409, None)):
        reply = online.direct(body, [*plain, (b"quorin-pin", pin)])
        assert reply is not None
        assert reply.status == status
        assert values is None or json.loads(reply.body)["results"][1]["values"] == values
    for more in ((b"quorin-pin", b"[]"), (b"quorin-max-age", b"60")):
        assert online.direct(body, [*plain, more]) is None
    machine.local.provider.online_store.release()


def test_the_server_pins_a_service(machine: Served) -> None:
    for entities in ([1, 2, 3], [1] * 2000):
        for service, amount in (("old", 1.0), ("new", 5.0)):
            answer = post(machine, feature_service=service, entities={"key": entities})
            assert column(answer, "amount")[0] == amount
    answer = post(machine, '{"prices": 2}', feature_service="old")
    assert column(answer, "amount") == [5.0, 6.0, None]


@pytest.mark.parametrize(
    ("pin", "status", "detail"),
    [
        ('{"prices": 77}', 409, "feature view prices has no generation 77"),
        ('{"prises": 1}', 422, "has no feature view 'prises'"),
        ('{"prices": "current"}', 422, "expected a generation"),
        ("prices=1", 422, "quorin-pin: prices=1"),
        ("{}", 422, "expected generations by feature view"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"unknown": 1}])
def test_the_server_refuses_other_pins(
    machine: Served, pin: str, status: int, detail: str, more: dict[str, int]
) -> None:
    answer = post(machine, pin, features=FEATURES, **more)
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text


def test_a_remote_store_pins_on_its_server(machine: Served, tmp_path: Path) -> None:
    store = machine.remote(tmp_path / "remote", tmp_path)
    request: dict[str, Any] = {"features": FEATURES, "entity_rows": ROWS}
    for pins, expected in (({"prices": 1}, [1.0, 2.0, None]), ({"prices": "v1"}, [5.0, 6.0, None])):
        with at_generation(pins):
            answer = store.get_online_features(**request)
            assert isinstance(answer, RemoteResponse)
            assert answer.to_dict()["amount"] == expected
            same(generic(store, **request), answer)
    for pin, kind in ((77, GenerationNotFoundError), ("v9", GenerationNotFoundError)):
        for ask in (store.get_online_features, partial(generic, store)):
            with at_generation({"prices": pin}), pytest.raises(kind, match=f"prices has no generation '?{pin}"):
                ask(**request)
    with at_generation({"prises": 1}), pytest.raises(InvalidPinError, match="'prises'"):
        store.get_online_features(**request)
    assert store.get_online_features(store.get_feature_service("old"), ROWS).to_dict()["amount"] == [1.0, 2.0, None]
    assert store.get_online_features(**request).to_dict()["amount"] == [5.0, 6.0, None]
