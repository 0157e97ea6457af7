"""What requests mean: keys of every type, rows that are too old, precomputed services, and Feast's metrics."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType, metrics
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import Float64, Int64, String, from_value_type

from feast_quorin.read.response import LazyResponse
from tests.equivalence.test_compiled import generic
from tests.feast.conftest import make_sqlite_store
from tests.feast.repos import END, START, definitions, make_store
from tests.feast.test_against_sqlite import same

KEYS: dict[ValueType, list[Any]] = {
    ValueType.INT32: [5, -5, 2**31 - 1],
    ValueType.INT64: [5, -5, 2**63 - 1],
    ValueType.STRING: ["5", "", "a|b"],
    ValueType.BYTES: [b"5", b"", b"\x00|"],
    ValueType.UNIX_TIMESTAMP: [dt.datetime(2024, 5, day, tzinfo=dt.UTC) for day in (1, 2, 3)],
    ValueType.BOOL: [True, False],
    ValueType.DOUBLE: [0.5, -0.5, 1e300],
    ValueType.FLOAT: [0.5, -0.25, 1.5],
    ValueType.UUID: [uuid.UUID(int=number) for number in (1, 2, 3)],
}
SERIALIZABLE = {ValueType.INT32, ValueType.INT64, ValueType.STRING, ValueType.BYTES, ValueType.UNIX_TIMESTAMP}
"""Those that Feast's own stores take."""

AS_PROTOS = {ValueType.INT32, ValueType.INT64, ValueType.STRING, ValueType.FLOAT}
"""Those of which Feast takes ``Value`` protos."""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """An embedded store: where the log is makes no difference here."""
    segments = tmp_path / "segments"
    segments.mkdir()
    return {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "capacity": 64}


@pytest.fixture
def embedded(settings: dict[str, Any], data: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    store = make_store(tmp_path / "embedded", settings, data=data)
    store.apply(definitions(data))
    yield store
    store.teardown()


def put(store: FeatureStore, view: str, rows: list[tuple[dict[str, Value], dict[str, Value], dt.datetime]]) -> None:
    data = [(EntityKey(join_keys=[*key], entity_values=[*key.values()]), row, at, None) for key, row, at in rows]
    store._get_provider().online_write_batch(store.config, store.get_feature_view(view), data, None)


@pytest.mark.parametrize("kind", KEYS, ids=lambda kind: kind.name)
def test_keys_of_every_type(settings: dict[str, Any], data: Path, tmp_path: Path, kind: ValueType) -> None:
    values = KEYS[kind]
    entity = Entity(name="thing", join_keys=["thing"], value_type=kind)
    other = Entity(name="other", join_keys=["other"], value_type=ValueType.INT64)
    source = FileSource(path=str(data / "pairs.parquet"), timestamp_field="at")
    key_fields = {"thing": from_value_type(kind), "other": Int64}
    views = [
        FeatureView(
            name=name,
            entities=entities,
            schema=[
                *(Field(name=one.name, dtype=key_fields[one.name]) for one in entities),
                Field(name=name + "_n", dtype=Int64),
            ],
            source=source,
        )
        for name, entities in (("single", [entity]), ("double", [other, entity]))
    ]
    stores = [make_store(tmp_path / "quorin", settings, data=data)]
    if kind in SERIALIZABLE:
        stores.append(make_sqlite_store(tmp_path / "sqlite", data))
    protos = python_values_to_proto_values(values, kind)
    for store in stores:
        store.apply([entity, other, *views])
        put(store, "single", [({"thing": key}, {"single_n": Value(int64_val=n)}, END) for n, key in enumerate(protos)])
        pairs = [{"other": Value(int64_val=7), "thing": key} for key in protos]
        put(store, "double", [(key, {"double_n": Value(int64_val=n)}, END) for n, key in enumerate(pairs)])
    count = len(values)
    for features, rows in (
        (["single:single_n"], {"thing": values}),
        (["single:single_n"], {"thing": values[:1]}),
        (["single:single_n", "double:double_n"], {"other": [7] * count, "thing": values}),
        (["double:double_n"], {"thing": values * 2, "other": [7] * count + [8] * count}),
        (["double:double_n"], {"thing": protos if kind in AS_PROTOS else values, "other": [7] * count}),
        (["double:double_n"], {"thing": values}),
        (["single:single_n"], {"thing": values, "other": [None] * count}),
    ):
        request: dict[str, Any] = {"features": features, "entity_rows": rows}
        fast = stores[0].get_online_features(**request)
        assert isinstance(fast, LazyResponse)
        same(fast, generic(stores[0], **request))
        for rival in stores[1:]:
            same(stores[0].get_online_features(**request), rival.get_online_features(**request))
    assert stores[0].get_online_features(["single:single_n"], {"thing": values}).to_dict()["single_n"] == [
        *range(count)
    ]
    stores[0].teardown()


def test_columns_that_nobody_asked_for_are_left_out(embedded: FeatureStore, sqlite_store: FeatureStore) -> None:
    embedded.materialize(START, END)
    for more in ({"note": ["a", "b"]}, {"note": [1, None]}, {"customer": ["alice", None]}, {"note": [object(), 1]}):
        request = {"features": ["driver_stats:trips"], "entity_rows": {"driver_id": [1001, 1], **more}}

        def outcome(store: FeatureStore, request: dict[str, Any] = request) -> Any:
            try:
                return store.get_online_features(**request).to_dict()
            except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
                return type(error)

        assert outcome(embedded) == outcome(sqlite_store)
    note = {"driver_id": [1001], "note": ["left out"]}
    assert isinstance(embedded.get_online_features(["driver_stats:trips"], note), LazyResponse)


def test_rows_older_than_the_ttl(settings: dict[str, Any], data: Path, tmp_path: Path) -> None:
    entity = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
    source = FileSource(path=str(data / "pairs.parquet"), timestamp_field="at")
    schema = [Field(name="number", dtype=Int64), Field(name="text", dtype=String)]
    hour = dt.timedelta(hours=1)
    short = FeatureView(name="short", entities=[entity], ttl=hour, schema=schema, source=source)
    endless = FeatureView(name="endless", entities=[entity], ttl=dt.timedelta(0), schema=schema, source=source)
    now = dt.datetime.now(dt.UTC)
    rows = [
        ({"thing": Value(int64_val=n)}, {"number": Value(int64_val=n), "text": Value(string_val=f"t{n}")}, at)
        for n, at in ((1, now), (2, now - 2 * hour), (3, now - hour + dt.timedelta(minutes=1)))
    ]
    request: dict[str, Any] = {"features": ["short:number", "short:text"], "entity_rows": {"thing": [1, 2, 3, 4]}}
    for enforce in (False, True):
        store = make_store(tmp_path / f"repo{enforce}", {**settings, "enforce_ttl": enforce}, data=data)
        store.apply([entity, short, endless])
        for view in ("short", "endless"):
            put(store, view, rows)
        fast = store.get_online_features(**request)
        assert isinstance(fast, LazyResponse)
        same(fast, generic(store, **request))
        expected = [1, None if enforce else 2, 3, None]
        assert fast.to_dict()["number"] == expected
        status = FieldStatus.OUTSIDE_MAX_AGE if enforce else FieldStatus.PRESENT
        present = FieldStatus.PRESENT
        assert [*fast.proto.results[1].statuses] == [present, status, present, FieldStatus.NOT_FOUND]
        assert fast.proto.results[1].event_timestamps[1].seconds == int((now - 2 * hour).timestamp())
        for thing, number in zip((1, 2, 3), expected, strict=False):
            one = {**request, "entity_rows": [{"thing": thing}]}
            for _ in range(2):
                answer = store.get_online_features(**one)
                assert answer.to_dict()["number"] == [number]
            same(answer, generic(store, **one))
        kept = store.get_online_features(["endless:number"], {"thing": [1, 2, 3]})
        assert kept.to_dict()["number"] == [1, 2, 3]
        store.teardown()


def test_a_precomputed_service_answers_from_the_rows_of_now(embedded: FeatureStore, data: Path) -> None:
    service = FeatureService(
        name="ready", features=[embedded.get_feature_view("customer_stats")], precompute_online=True
    )
    plain = FeatureService(name="plain", features=[embedded.get_feature_view("customer_stats")])
    embedded.apply([service, plain])
    embedded.materialize(START, END)
    rows = {"customer": ["alice", "nobody"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for full_names in (False, True):
            answers = [
                ask(
                    embedded,
                    features=embedded.get_feature_service(name),
                    entity_rows=rows,
                    full_feature_names=full_names,
                )
                for name in ("ready", "plain")
                for ask in (lambda store, **request: store.get_online_features(**request), generic)
            ]
            assert isinstance(answers[0], LazyResponse)
            for answer in answers[1:]:
                same(copy.copy(answers[0]), answer)
    put(embedded, "customer_stats", [({"customer": Value(string_val="alice")}, {"score": Value(double_val=-1)}, END)])
    assert embedded.get_online_features(service, rows).to_dict()["score"] == [-1, None]
    assert generic(embedded, features=service, entity_rows=rows).to_dict()["score"] == [-1, None]


@pytest.mark.parametrize("order", [[2, 0, 2, 1], [3, 2, 1, 0], [1, 1, 1], [0, 9, 0, 2, 9, 1]], ids=str)
def test_a_precomputed_service_keeps_rows_in_their_order(embedded: FeatureStore, order: list[int]) -> None:
    """Feast's own precomputed path does not (issue 6805 of Feast): it gives rows the values of other entities."""
    service = FeatureService(
        name="ready", features=[embedded.get_feature_view("customer_stats")], precompute_online=True
    )
    embedded.apply([service])
    hour = dt.timedelta(hours=1)
    for number in range(4):
        key = {"customer": Value(string_val=f"customer-{number}")}
        put(embedded, "customer_stats", [(key, {"score": Value(double_val=number * 10)}, END + number * hour)])
        entity = EntityKey(join_keys=["customer"], entity_values=[key["customer"]])
        stored = embedded._get_provider().online_store
        stored.write_precomputed_vector(embedded.config, "ready", "shop", entity, b"nobody reads this")
    asked = {"customer": [f"customer-{number}" for number in order]}
    for answer in (
        embedded.get_online_features(service, asked),
        embedded.get_online_features(service, [{"customer": name} for name in asked["customer"]]),
        generic(embedded, features=service, entity_rows=asked),
        asyncio.run(embedded.get_online_features_async(service, asked)),
    ):
        found = answer.to_dict(include_event_timestamps=True)
        assert found["customer"] == asked["customer"]
        assert found["score"] == [number * 10 if number < 4 else None for number in order]
        times = [END + number * hour if number < 4 else dt.datetime.fromtimestamp(0, dt.UTC) for number in order]
        assert found["score__ts"] == [time.timestamp() for time in times]


def test_feasts_metrics_count_what_a_compiled_request_reads(
    embedded: FeatureStore, sqlite_store: FeatureStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(store: FeatureStore, request: dict[str, Any]) -> dict[str, float]:
        before = collected()
        store.get_online_features(**request).proto  # noqa: B018 - building it must count nothing once more
        return {
            name: value - before.get(name, 0) for name, value in collected().items() if value != before.get(name, 0)
        }

    embedded.materialize(START, END)
    monkeypatch.setattr(metrics._config, "online_features", True)
    for rows in ({"driver_id": [1001]}, {"driver_id": [1]}, {"driver_id": [1001, 1, 1002, 1001]}):
        request = {"features": ["driver_stats:trips", "driver_stats:acc", "world:fuel_price"], "entity_rows": rows}
        assert isinstance(embedded.get_online_features(**request), LazyResponse)
        assert counted(embedded, request) == counted(sqlite_store, request) != {}

    @on_demand_feature_view(
        sources=[embedded.get_feature_view("customer_stats")],
        schema=[Field(name="twice", dtype=Float64)],
        mode="python",
        track_metrics=True,
    )
    def watched(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [2 * (score or 0.0) for score in inputs["score"]]}

    embedded.apply([watched])
    request = {"features": ["watched:twice"], "entity_rows": {"customer": ["alice"]}}
    assert "feast_feature_server_transformation_duration_seconds_count:watched" in counted(embedded, request)


def collected() -> dict[str, float]:
    """Feast's counts of reads and values, by name and view; no durations."""
    found = {}
    for metric in (
        metrics.online_features_status_total,
        metrics.online_store_read_duration_seconds,
        metrics.transformation_duration_seconds,
    ):
        for family in metric.collect():
            for sample in family.samples:
                if sample.name.endswith(("_total", "_count")):
                    labels = ":".join(str(value) for name, value in sorted(sample.labels.items()) if name != "mode")
                    found[f"{sample.name}:{labels}"] = sample.value
    return found
