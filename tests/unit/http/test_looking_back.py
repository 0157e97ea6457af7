"""Last values and changes over HTTP: as the engine reads them, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from quorin.assembly import changed_since, read_last_batch
from quorin.evolution import replace
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.http import Running
from tests.support.segment_site import ARROW, Site, batch_of, post, serving_site

CARD = make_schema(
    "Card",
    [
        FeatureField("amount", dtype.float32, history=4),
        FeatureField("count", dtype.int64, history=3),
        FeatureField("pair", dtype.int32, (2,)),
        FeatureField("grid", dtype.uint8, (2, 2)),
        FeatureField("flag", dtype.bool),
        FeatureField("tags", dtype.string, (None,)),
        FeatureField("blob", dtype.bytes),
    ],
)
LOADED = make_schema("Loaded", [FeatureField("n", dtype.int64)])
ROWS = [
    (
        "a",
        {
            "amount": 0.1,
            "count": 2**62,
            "pair": [1, -1],
            "grid": [[1, 2], [3, 4]],
            "flag": True,
            "tags": ["x", "🦊"],
            "blob": b"\xff",
        },
    ),
    ("a", {"amount": None, "count": 1, "pair": None, "grid": None, "flag": None, "tags": None, "blob": None}),
    (
        "a",
        {"amount": float("nan"), "count": None, "pair": [3, 4], "grid": None, "flag": False, "tags": [], "blob": b""},
    ),
    (
        "é b",
        {
            "amount": 2.5,
            "count": -5,
            "pair": [5, 6],
            "grid": [[5, 6], [7, 8]],
            "flag": True,
            "tags": ["y"],
            "blob": b"z",
        },
    ),
    (
        "gone",
        {
            "amount": 1.0,
            "count": 1,
            "pair": [7, 8],
            "grid": [[9, 9], [9, 9]],
            "flag": True,
            "tags": ["z"],
            "blob": b"1",
        },
    ),
]
IDS = ["a", "nobody", "é b", "gone"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "shm").mkdir()
    registry = SegmentRegistry(str(folder / "store"), shm_dir=folder / "shm")
    with WALProducer(registry.backend, registry=registry) as producer:
        for number, (entity_id, values) in enumerate(ROWS):
            producer.write(CARD, entity_id, values, number + 1)
        producer.delete(CARD, "gone", 10)
        producer.write(LOADED, "old", {"n": 1}, 1)
    WALConsumer(registry.backend, [CARD, LOADED], registry=registry).drain()
    replace(LOADED, {"entity_id": ["new"], "n": [2]}, registry)
    yield Site(folder / "store", folder / "shm", registry)
    registry.backend.close()


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving_site(site, tmp_path_factory.mktemp("served") / "log", "--max-rows", "10") as running:
        yield running


@pytest.mark.parametrize("field", ["amount", "count"])
@pytest.mark.parametrize("n", [None, 1, 100])
def test_last_values_are_those_of_the_segment(site: Site, server: Running, field: str, n: int | None) -> None:
    request = {"schema": "Card", "entity_ids": IDS, "field": field, **({} if n is None else {"n": n})}
    with site.registry.open_current(CARD) as segment:
        expected = read_last_batch(segment, IDS, field, n)
    answer = post(server, "/v1/last", request)
    found = answer.json()
    assert (answer.status_code, found["schema"], found["field"], found["entity_ids"]) == (200, "Card", field, IDS)
    assert found["found"] == expected["found"].to_pylist()
    assert found["event_time_ns"] == expected["event_time_ns"].to_pylist()
    values = [None if own is None else pa.array(own, expected["values"].type.value_type) for own in found["values"]]
    without_nan = json.loads(json.dumps(expected["values"].to_pylist()).replace("NaN", "null"))
    assert [own and own.to_pylist() for own in values] == without_nan

    batch = batch_of(post(server, "/v1/last", request, Accept=ARROW))
    assert repr(batch.to_pylist()) == repr(expected.to_pylist())
    ids = pa.record_batch({"ids": IDS}).replace_schema_metadata(
        {"request": json.dumps({key: value for key, value in request.items() if key != "entity_ids"})}
    )
    assert post(server, "/v1/last", ids).json() == found


@pytest.mark.parametrize("position", ["all", "some", "none"])
def test_changes_are_those_of_the_segment(site: Site, server: Running, position: str) -> None:
    with site.registry.open_current(CARD) as segment:
        rows = changed_since(segment, 0).batches.read_all()
        since = {"all": 0, "some": min(rows["position"].to_pylist()), "none": segment.position}[position]
        changes = changed_since(segment, since)
        expected = changes.batches.read_all()
    found = post(server, "/v1/changes", {"schema": "Card", "position": since}).json()
    assert (found["schema"], found["through"]) == ("Card", changes.through)
    for name, key in (("entity_ids", "entity_id"), ("event_time_ns",) * 2, ("position",) * 2, ("deleted",) * 2):
        assert found[name] == expected[key].to_pylist(), name
    for name in ("count", "pair", "grid", "flag", "tags"):
        assert found["features"][name] == expected[name].to_pylist(), name
    amounts = {"a": None, "é b": 2.5, "gone": None}
    assert found["features"]["amount"] == [amounts[entity_id] for entity_id in found["entity_ids"]]
    blobs = {"a": "", "é b": "eg==", "gone": None}
    assert found["features"]["blob"] == [blobs[entity_id] for entity_id in found["entity_ids"]]

    answer = post(server, "/v1/changes", {"schema": "Card", "position": since}, Accept=ARROW)
    with pa.ipc.open_stream(answer.content) as stream:
        table = stream.read_all()
    assert repr(table.to_pylist()) == repr(expected.to_pylist())
    assert table.schema.metadata[b"through"] == str(changes.through).encode()


def test_changes_may_be_chosen_and_limited(server: Running) -> None:
    request: dict[str, Any] = {"schema": "Card", "position": 0, "fields": ["pair", "count"]}
    found = post(server, "/v1/changes", {**request, "prefix": "é"}).json()
    assert (found["entity_ids"], found["features"]) == (["é b"], {"pair": [[5, 6]], "count": [-5]})
    found = post(server, "/v1/changes", {**request, "limit": 2}).json()
    assert (len(found["entity_ids"]), found["through"]) == (2, None)
    whole = post(server, "/v1/changes", {**request, "limit": 3}).json()
    assert (len(whole["entity_ids"]), whole["through"] is None) == (3, False)


def test_changes_before_a_replacement_are_gone(server: Running) -> None:
    answer = post(server, "/v1/changes", {"schema": "Loaded", "position": 1})
    refused = answer.json()
    assert (answer.status_code, refused["error"]) == (410, "ChangesForgottenError")
    again = {"schema": "Loaded", "position": refused["complete_from"]}
    assert post(server, "/v1/changes", again).json()["entity_ids"] == []


@pytest.mark.parametrize(
    ("path", "request_", "status", "problem"),
    [
        ("last", {"schema": "Card", "entity_ids": ["a"], "field": "tags"}, 422, "'tags' is no field with a history"),
        ("last", {"schema": "Card", "entity_ids": ["a"], "field": "nope"}, 422, "'nope' is no field with a history"),
        ("last", {"schema": "Card", "entity_ids": ["a"], "field": "count", "n": 0}, 422, "n: expected a whole number"),
        ("last", {"schema": "Card", "entity_ids": ["a"], "field": "count", "n": True}, 422, "n: expected"),
        ("last", {"schema": "Card", "entity_ids": ["a", ""], "field": "count"}, 422, "entity_ids[1]"),
        ("last", {"schema": "Card", "entity_ids": ["a"] * 11, "field": "count"}, 413, "at most 10 rows, got 11"),
        ("last", {"schema": "Nope", "entity_ids": ["a"], "field": "count"}, 404, "there is no schema 'Nope'"),
        ("last", {"schema": "Card", "entity_ids": ["a"]}, 422, "expected the keys schema, entity_ids, field"),
        ("changes", {"schema": "Card"}, 422, "expected the keys schema, position"),
        ("changes", {"schema": "Card", "position": None}, 422, "position: expected a position of the log"),
        ("changes", {"schema": "Card", "position": -1}, 422, "position: expected a whole number"),
        ("changes", {"schema": "Card", "position": 2**63}, 422, "position: expected a whole number"),
        ("changes", {"schema": "Card", "position": 0, "prefix": 1}, 422, "prefix: expected a text"),
        ("changes", {"schema": "Card", "position": 0, "fields": ["nope"]}, 422, "nope"),
        ("changes", {"schema": "Card", "position": 0, "limit": 0}, 422, "limit: expected a whole number"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    server: Running, path: str, request_: dict[str, Any], status: int, problem: str
) -> None:
    answer = post(server, f"/v1/{path}", request_)
    assert (answer.status_code, problem in answer.json()["detail"]) == (status, True), answer.text


def test_more_changes_than_fit_are_refused(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving_site(site, tmp_path_factory.mktemp("small") / "log", "--max-rows", "2") as small:
        answer = post(small, "/v1/changes", {"schema": "Card", "position": 0})
        assert (answer.status_code, "more than 2 rows changed" in answer.json()["detail"]) == (413, True), answer.text
        assert len(post(small, "/v1/changes", {"schema": "Card", "position": 0, "limit": 2}).json()["deleted"]) == 2
