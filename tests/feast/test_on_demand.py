"""On-demand views computed from the arrays give what Feast computes through protobuf, over Quorin and over SQLite."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, Field, RequestSource
from feast.aggregation import Aggregation
from feast.on_demand_feature_view import OnDemandFeatureView, on_demand_feature_view
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

from feast_quorin.read.response import LazyResponse
from tests.equivalence.test_compiled import generic
from tests.feast.conftest import make_sqlite_store
from tests.feast.repos import CUSTOMERS, DRIVERS, END, START, definitions, make_store
from tests.feast.test_against_sqlite import same

OUTPUTS = {
    "rates": ["rate_up", "rate_small", "rate_text", "is_high", "trips_text", "history"],
    "scores": ["score_up", "score_or_nan"],
    "one": ["one_up"],
    "frames": ["frame_up", "frame_trips", "frame_name"],
    "asked": ["asked_up", "asked_name"],
    "stored_rates": ["stored_up"],
}
NEEDS = {"rates": ["driver_id"], "scores": ["customer"], "one": ["driver_id"], "frames": ["driver_id"]}
NEEDS |= {"asked": ["driver_id", "factor", "word"], "stored_rates": ["driver_id"]}


def views(data: Path) -> list[Any]:
    """The usual views, and on-demand views of every kind over them."""
    known = {thing.name: thing for thing in definitions(data)}
    drivers = known["driver_stats"][["conv_rate", "trips", "tags"]]
    rates, *others = python_views(drivers, known["customer_stats"])
    kept = [known[name] for name in ("driver", "customer", "driver_stats", "customer_stats", "world")]
    service = FeatureService(
        name="renamed",
        features=[known["driver_stats"][["small"]], rates.with_name("better")[["rate_up", "is_high"]]],
    )
    return [*kept, rates, *others, *views_beyond_python(drivers, known["driver"]), service]


def python_views(drivers: Any, customers: Any) -> tuple[Any, ...]:
    """On-demand views of plain Python: of lists, of one view, of one row."""

    @on_demand_feature_view(
        sources=[drivers],
        schema=[
            Field(name="rate_up", dtype=Float64),
            Field(name="rate_small", dtype=Float64),
            Field(name="rate_text", dtype=String),
            Field(name="is_high", dtype=Bool),
            Field(name="trips_text", dtype=Int64),
            Field(name="history", dtype=Array(Float64)),
        ],
        mode="python",
    )
    def rates(inputs: dict[str, Any]) -> dict[str, Any]:
        rate = inputs["conv_rate"]
        return {
            "rate_up": [None if value is None else value + 0.1 for value in rate],
            "rate_small": [None if value is None else value / 3 for value in rate],
            "rate_text": ["none" if value is None else str(value) for value in rate],
            "is_high": [None if value is None else value > 1 for value in rate],
            "trips_text": [None if trips is None else trips + 1 for trips in inputs["driver_stats__trips"]],
            "history": [None if value is None else [value, 1.0] for value in rate],
            "left_out": sorted(inputs),
        }

    @on_demand_feature_view(
        sources=[customers],
        schema=[Field(name="score_up", dtype=Float64), Field(name="score_or_nan", dtype=Float64)],
        mode="python",
    )
    def scores(inputs: dict[str, Any]) -> dict[str, Any]:
        assert not any("conv_rate" in name for name in inputs), "features of other views are not for this function"
        return {
            "score_up": [None if score is None else 2 * score for score in inputs["score"]],
            "score_or_nan": [float("nan") if score is None else score for score in inputs["score"]],
        }

    @on_demand_feature_view(
        sources=[drivers], schema=[Field(name="one_up", dtype=Int64)], mode="python", singleton=True
    )
    def one(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"one_up": [(inputs["trips"] or 0) + 1]}

    return rates, scores, one


def views_beyond_python(drivers: Any, driver: Entity) -> tuple[Any, ...]:
    """On-demand views of pandas, of request data, and one that is stored."""
    request = RequestSource(
        name="asked_for", schema=[Field(name="factor", dtype=Float64), Field(name="word", dtype=String)]
    )

    @on_demand_feature_view(
        sources=[drivers],
        schema=[
            Field(name="frame_up", dtype=Float64),
            Field(name="frame_trips", dtype=Int64),
            Field(name="frame_name", dtype=String),
        ],
        mode="pandas",
    )
    def frames(frame: pd.DataFrame) -> pd.DataFrame:
        out = pd.DataFrame()
        out["frame_up"] = frame["conv_rate"].astype("float64") * 2
        out["frame_trips"] = frame["trips"].fillna(0).astype("int64")
        out["frame_name"] = [str(sorted(frame.columns))] * len(frame)
        return out

    @on_demand_feature_view(
        sources=[drivers, request],
        schema=[Field(name="asked_up", dtype=Float64), Field(name="asked_name", dtype=String)],
        mode="python",
    )
    def asked(inputs: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(inputs["conv_rate"], inputs["factor"], strict=True)
        return {
            "asked_up": [None if rate is None or factor is None else rate * factor for rate, factor in pairs],
            "asked_name": [f"{word}:{type(word).__name__}" for word in inputs["word"]],
        }

    @on_demand_feature_view(
        entities=[driver],
        sources=[drivers],
        schema=[Field(name="stored_up", dtype=Float64)],
        mode="python",
        write_to_online_store=True,
    )
    def stored_rates(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"stored_up": [None if rate is None else -rate for rate in inputs["conv_rate"]]}

    return frames, asked, stored_rates


@pytest.fixture
def store(online_store: dict[str, Any], data: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    store = make_store(tmp_path / "repo", online_store, data=data)
    fill(store, data)
    yield store
    store.teardown()


@pytest.fixture(scope="module")
def rival(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = make_sqlite_store(tmp_path_factory.mktemp("sqlite"), data)
    fill(store, data)
    return store


def fill(store: FeatureStore, data: Path) -> None:
    store.apply(views(data))
    store.materialize(START, END, feature_views=["driver_stats", "customer_stats"])
    rows = [
        (
            EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=driver)]),
            {"stored_up": Value(double_val=-driver)},
            END,
            None,
        )
        for driver in DRIVERS[:5]
    ]
    stored = store.get_on_demand_feature_view("stored_rates")
    store._get_provider().online_write_batch(store.config, stored, rows, None)


def generated(source: random.Random) -> dict[str, Any]:
    """A request for on-demand views and others, with the columns that they need and sometimes one more."""
    chosen = source.sample(["rates", "scores", "frames", "asked", "stored_rates"], source.randint(1, 3))
    count = source.choice([1, 1, 2, 7, 30])
    if count == 1:
        chosen += ["one"] * source.randint(0, 1)
    features = []
    for view in chosen:
        features += [f"{view}:{name}" for name in source.sample(OUTPUTS[view], source.randint(1, len(OUTPUTS[view])))]
    features += source.sample(
        ["driver_stats:nick", "driver_stats:conv_rate", "driver_stats:tags"], source.randint(0, 3)
    )
    features += source.sample(["customer_stats:city", "customer_stats:score"], source.randint(0, 2))
    source.shuffle(features)
    values: dict[str, list[Any]] = {
        "driver_id": [*DRIVERS, 7],
        "customer": [*CUSTOMERS, "nobody"],
        "factor": [1.5, -2.0, math.inf],
        "word": ["a", "", "ü"],
        "note": ["left out", "too"],
    }
    used = {"driver_id", "customer", *(key for view in chosen for key in NEEDS[view])}
    used |= {"note"} if source.random() < 0.3 else set()
    names = source.sample(sorted(used), len(used))
    return {
        "features": features,
        "entity_rows": {name: source.choices(values[name], k=count) for name in names},
        "full_feature_names": source.random() < 0.5,
    }


def test_generated_requests_are_the_same_three_times(store: FeatureStore, rival: FeatureStore) -> None:
    source = random.Random(8)
    for _ in range(50):
        request = generated(source)
        fast = store.get_online_features(**request)
        assert isinstance(fast, LazyResponse)
        same(fast, rival.get_online_features(**request))
        same(asyncio.run(store.get_online_features_async(**request)), generic(store, **request))


def test_a_service_with_an_on_demand_view_is_the_same(store: FeatureStore, rival: FeatureStore) -> None:
    for full_names in (False, True):
        answers = [
            one.get_online_features(
                one.get_feature_service("renamed"), {"driver_id": [1001, 1002, 5]}, full_feature_names=full_names
            )
            for one in (store, rival)
        ]
        assert isinstance(answers[0], LazyResponse)
        same(*answers)


@pytest.mark.parametrize(
    "columns",
    [
        {"driver_id": [1001, 1002], "factor": [1, 2], "word": ["a", "b"]},
        {"driver_id": [1001, 1002], "factor": [1, 2.5], "word": ["a", "b"]},
        {"driver_id": [1001, 1002], "factor": [None, 2.5], "word": ["a", None]},
        {"driver_id": [1001, 1002], "factor": [math.nan, 2.5], "word": ["a", "b"]},
        {"driver_id": [1001, 1002], "factor": [None, None], "word": ["a", "b"]},
        {"driver_id": [1001, 1002], "factor": [True, False], "word": ["a", "b"]},
        {"driver_id": [1001, 1002], "factor": [2**70, 1], "word": ["a", "b"]},
        {"driver_id": [1001, 1002], "factor": [1.0, 2.0]},
        {"driver_id": [1001, 1002], "factor": [1.0, 2.0], "word": ["a", "b"], "extra": [{"a": 1}, None]},
        {"driver_id": [1001, 1002], "factor": [1.0, 2.0], "word": ["a", "b"], "extra": [object(), 1]},
        {"driver_id": [1001, 1002], "factor": [1.0, 2.0], "word": ["a", "b"], "customer": ["alice", None]},
        {"factor": [1.0, 2.0], "word": ["a", "b"]},
    ],
    ids=lambda columns: re.sub(" at 0x[0-9a-f]+", "", str(columns)),
)
def test_data_of_the_request_is_taken_as_by_feast(store: FeatureStore, rival: FeatureStore, columns: Any) -> None:
    def outcome(store: FeatureStore) -> Any:
        try:
            return repr(store.get_online_features(["asked:asked_up", "asked:asked_name"], columns).to_dict())
        except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
            return type(error), str(error)

    assert outcome(store) == outcome(rival)


RESULTS: list[tuple[Any, Any]] = [
    (Float64, [1.0, math.nan]),
    (Float64, [1, 2]),
    (Float64, [0.0, np.float32(1.5)]),
    (Float64, ["a", "b"]),
    (Float32, [1e300, 0.1]),
    (Float32, [None, 0.1]),
    (Int64, [1.5, 2.0]),
    (Int64, [2**70, 1]),
    (Int64, [2**60, -1]),
    (Int32, [2**31, 1]),
    (Int32, [5, None]),
    (String, [1, None]),
    (String, ["", None]),
    (Bool, [True, None]),
    (Bool, [1, 0]),
    (UnixTimestamp, [1, 2]),
    (Array(Float64), [[1.0], []]),
    (Array(String), [["a"], None]),
    (Float64, [None, None]),
    (Float64, []),
    (Float64, [1.0, 2.0, 3.0]),
    (Float64, 7.0),
    (Float64, np.array([1.0, np.nan])),
    (Float64, np.array([1.0, 2.0], np.float32)),
    (Int32, np.array([1, 2], np.int32)),
]


def test_results_of_any_type_are_taken_or_refused_as_by_feast(
    store: FeatureStore, rival: FeatureStore, data: Path
) -> None:
    customers = next(thing for thing in definitions(data) if thing.name == "customer_stats")

    def outcome(store: FeatureStore, view: str) -> Any:
        try:
            answer = store.get_online_features([f"{view}:out"], {"customer": ["alice", "nobody"]})
            values = repr(answer.to_dict())
            return values, str(answer.proto.results), repr(answer.to_dict(True))
        except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
            return type(error), str(error)

    names = []
    for number, (kind, result) in enumerate(RESULTS):
        for mode in ("python", "pandas"):
            view = on_demand_feature_view(
                sources=[customers], schema=[Field(name="out", dtype=kind)], mode=mode, name=f"{mode}_{number}"
            )(returning(result, mode))
            names.append(view.name)
            for one in (store, rival):
                one.registry.apply_feature_view(view, one.project)
    for name in names:
        assert outcome(store, name) == outcome(rival, name), name


def returning(result: Any, mode: str) -> Any:
    """A function of an on-demand view that always computes the same."""

    def as_dict(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"out": result}

    def as_frame(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"out": result})

    return as_dict if mode == "python" else as_frame


@pytest.mark.parametrize("mode", ["python", "pandas"])
def test_aggregations_are_the_same(online_store: dict[str, Any], data: Path, tmp_path: Path, mode: str) -> None:
    known = {thing.name: thing for thing in definitions(data)}
    summed = OnDemandFeatureView(
        name="summed",
        sources=[known["customer_stats"]],
        schema=[Field(name="sum_score", dtype=Float64)],
        aggregations=[Aggregation(column="score", function="sum")],
        mode=mode,
    )
    stores = [
        make_store(tmp_path / "quorin", online_store, data=data),
        make_store(tmp_path / "sqlite", {"type": "sqlite", "path": str(tmp_path / "online.db")}, data=data),
    ]
    outcomes = []
    for store in stores:
        store.apply([known["customer"], known["customer_stats"], summed])
        store.materialize(START, END)
        request: dict[str, Any] = {"features": ["summed:sum_score", "customer_stats:city"]}
        try:
            outcomes.append(store.get_online_features(**request, entity_rows={"customer": CUSTOMERS[:4]}).to_dict())
        except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
    stores[0].teardown()
