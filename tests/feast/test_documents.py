"""Vector retrieval through Feast: the nearest documents of brute force, each with its own key and features."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.feature_server import get_app
from feast.filter_models import ComparisonFilter, CompoundFilter
from feast.types import Array, Bool, Float32, Int64, Json, String

from feast_quorin.convert.entity_ids import entity_ids, entity_key, key_columns
from quorin.errors import InvalidRowError
from tests.feast.repos import make_store

NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
COUNT, SIZE = 60, 16
RNG = np.random.default_rng(5)
VECTORS = RNG.standard_normal((COUNT, SIZE), np.float32)
QUERY = RNG.standard_normal(SIZE, np.float32)
NAMES = [f"doc {(number * 37) % COUNT}|" for number in range(COUNT)]
FEATURES = ["docs:embedding", "docs:title", "docs:pages"]


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": NAMES,
            "part": np.arange(COUNT) - 5,
            "at": pd.to_datetime([NOON + dt.timedelta(seconds=n) for n in range(COUNT)]),
            "embedding": list(VECTORS),
            "title": [None if n % 5 == 0 else f"t{n % 3}" for n in range(COUNT)],
            "pages": np.arange(COUNT),
            "open": [bool(n % 2) for n in range(COUNT)],
            "more": ["{}"] * COUNT,
        }
    )


def docs(folder: Path, **settings: Any) -> list[Any]:
    """Documents with two join keys whose order is not that of their rows."""
    name = Entity(name="name", join_keys=["name"], value_type=ValueType.STRING)
    part = Entity(name="part", join_keys=["part"], value_type=ValueType.INT64)
    embedding = Field(name="embedding", dtype=Array(Float32), **settings)
    kinds = {"title": String, "pages": Int64, "open": Bool, "more": Json}
    frame().to_parquet(folder / "docs.parquet")
    view = FeatureView(
        name="docs",
        entities=[name, part],
        schema=[
            Field(name="name", dtype=String),
            Field(name="part", dtype=Int64),
            embedding,
            *(Field(name=feature, dtype=kind) for feature, kind in kinds.items()),
        ],
        source=FileSource(path=str(folder / "docs.parquet"), timestamp_field="at"),
    )
    return [name, part, view]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    online = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(tmp_path)}
    made = make_store(tmp_path / "repo", online, provider="feast_quorin.QuorinProvider")
    made.apply(docs(tmp_path, vector_index=True, vector_length=SIZE))
    made.write_to_online_store("docs", frame())
    yield made
    made.teardown()


def expected(metric: str, passing: Any = lambda _: True) -> list[int]:
    vectors, query = VECTORS.astype(np.float64), QUERY.astype(np.float64)
    distances = {
        "l2": np.linalg.norm(vectors - query, axis=1),
        "cosine": 1 - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query),
        "inner_product": -(vectors @ query),
    }[metric]
    return [int(row) for row in np.argsort(distances) if passing(int(row))]


def answer(store: FeatureStore, **choice: Any) -> dict[str, list[Any]]:
    answered: dict[str, list[Any]] = store.retrieve_online_documents_v2(
        **{"features": FEATURES, "top_k": 7, "query": QUERY.tolist(), **choice}
    ).to_dict()
    return answered


@pytest.mark.parametrize(
    ("named", "metric"),
    [
        ("L2", "l2"),
        ("cosine", "cosine"),
        ("COSINE", "cosine"),
        ("inner_product", "inner_product"),
        ("IP", "inner_product"),
    ],
)
def test_the_nearest_documents_are_those_of_brute_force(store: FeatureStore, named: str, metric: str) -> None:
    found, rows = answer(store, distance_metric=named), expected(metric)[:7]
    assert found["name"] == [NAMES[row] for row in rows]
    assert found["part"] == [row - 5 for row in rows]
    assert found["pages"] == rows
    assert found["title"] == [None if row % 5 == 0 else f"t{row % 3}" for row in rows]
    np.testing.assert_array_equal(np.array(found["embedding"], np.float32), VECTORS[rows])
    assert found["distance"] == sorted(found["distance"])


def test_the_first_form_of_the_request_gives_the_same(store: FeatureStore) -> None:
    response = store.retrieve_online_documents(
        query=QUERY.tolist(), top_k=5, features=["docs:embedding", "docs:distance"], distance_metric="L2"
    )
    np.testing.assert_array_equal(np.array(response.to_dict()["embedding"], np.float32), VECTORS[expected("l2")[:5]])


@pytest.mark.parametrize("keys", [["name"], ["part"], ["part", "name"]])
def test_join_keys_among_the_features_are_those_of_the_documents(store: FeatureStore, keys: list[str]) -> None:
    rows = expected("l2")[:7]
    found = answer(store, features=[*(f"docs:{key}" for key in keys), *FEATURES])
    assert (found["name"], found["part"]) == ([NAMES[row] for row in rows], [row - 5 for row in rows])
    assert found["pages"] == rows
    only_keys = answer(store, features=[f"docs:{key}" for key in keys])
    assert (only_keys["name"], only_keys["part"], only_keys["distance"]) == (
        found["name"],
        found["part"],
        found["distance"],
    )
    response = store.retrieve_online_documents(
        query=QUERY.tolist(), top_k=7, features=["docs:embedding", *(f"docs:{key}" for key in keys)]
    ).to_dict()
    assert {key: response[key] for key in keys} == {key: found[key] for key in keys}


def test_a_store_answers_with_every_key_as_a_present_value(store: FeatureStore) -> None:
    """What Feast's Milvus store returns: the key's values among the features, with the types of the keys."""
    view = store.get_feature_view("docs")
    online = store._get_provider().online_store
    features = ["embedding", "name", "part"]
    found = online.retrieve_online_documents_v2(store.config, view, features, QUERY.tolist(), 1, "L2")
    ((_, key, values),) = found
    assert [values["name"], values["part"]] == list(key.entity_values)
    assert set(values) == {*features, "distance"}


def test_join_keys_among_the_features_over_http(store: FeatureStore) -> None:
    request = {"features": [*FEATURES, "docs:name"], "query": QUERY.tolist(), "top_k": 3, "api_version": 2}
    status, body = post(get_app(store), "/retrieve-online-documents", request)
    assert status == 200, body
    answered = json.loads(body)
    column = answered["results"][answered["metadata"]["feature_names"].index("name")]
    assert column["values"] == [NAMES[row] for row in expected("l2")[:3]]
    assert column["statuses"] == ["PRESENT"] * 3


def post(app: Any, path: str, body: Any) -> tuple[int, bytes]:
    """The status and the body that an ASGI application answers to JSON."""
    sent: list[dict[str, Any]] = []
    received = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "root_path": "",
    }

    async def receive() -> dict[str, Any]:
        return received.pop() if received else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    ("filters", "passing"),
    [
        (ComparisonFilter(type="eq", key="pages", value=7), lambda n: n == 7),
        (ComparisonFilter(type="ne", key="title", value="t1"), lambda n: n % 5 and n % 3 != 1),
        (ComparisonFilter(type="gte", key="pages", value=40.5), lambda n: n > 40),
        (ComparisonFilter(type="lt", key="pages", value=3), lambda n: n < 3),
        (ComparisonFilter(type="eq", key="open", value=True), lambda n: n % 2),
        (ComparisonFilter(type="eq", key="open", value=1), lambda n: n % 2),
        (ComparisonFilter(type="in", key="title", value=["t0", "t2"]), lambda n: n % 5 and n % 3 != 1),
        (ComparisonFilter(type="nin", key="title", value=["t0"]), lambda n: n % 5 and n % 3),
        (ComparisonFilter(type="in", key="pages", value=[]), lambda _: False),
        (ComparisonFilter(type="lt", key="part", value=4), lambda n: n < 9),
        (ComparisonFilter(type="in", key="name", value=[NAMES[3], NAMES[8]]), lambda n: n in (3, 8)),
        (ComparisonFilter(type="ne", key="name", value=NAMES[3]), lambda n: n != 3),
        (
            CompoundFilter(
                type="and",
                filters=[
                    ComparisonFilter(type="gte", key="part", value=20),
                    ComparisonFilter(type="eq", key="open", value=True),
                ],
            ),
            lambda n: n >= 25 and n % 2,
        ),
        (ComparisonFilter(type="nin", key="title", value=[]), lambda n: n % 5),
        (CompoundFilter(type="and", filters=[]), lambda _: True),
        (
            CompoundFilter(
                type="or",
                filters=[
                    ComparisonFilter(type="lte", key="pages", value=3),
                    CompoundFilter(
                        type="and",
                        filters=[
                            ComparisonFilter(type="gt", key="pages", value=50),
                            ComparisonFilter(type="eq", key="title", value="t0"),
                        ],
                    ),
                ],
            ),
            lambda n: n <= 3 or (n > 50 and n % 5 and n % 3 == 0),
        ),
    ],
)
def test_filters_narrow_the_search_before_it_ranks(store: FeatureStore, filters: Any, passing: Any) -> None:
    assert answer(store, filters=filters).get("pages", []) == expected("l2", passing)[:7]


def test_a_rewritten_and_a_null_embedding(store: FeatureStore) -> None:
    nearest, farthest = expected("l2")[0], expected("l2")[-1]
    rows = frame().iloc[[nearest, farthest]].assign(at=pd.to_datetime([NOON + dt.timedelta(days=1)] * 2))
    rows["embedding"] = pd.Series([None, VECTORS[farthest]], index=rows.index)
    store.write_to_online_store("docs", rows)
    row = rows.iloc[[0]].copy()
    assert answer(store)["pages"] == expected("l2")[1:8]
    row["embedding"], row["at"] = [QUERY], pd.to_datetime([NOON + dt.timedelta(days=2)])
    store.write_to_online_store("docs", row)
    found = answer(store)
    assert (found["pages"][0], found["distance"][0]) == (nearest, 0.0)


@pytest.mark.parametrize(
    ("choice", "error", "text"),
    [
        ({"query": [1.0]}, InvalidRowError, "16 numbers for 'embedding', got 1"),
        ({"distance_metric": "manhattan"}, InvalidRowError, "'manhattan', expected one of"),
        ({"query": None, "query_string": "words"}, NotImplementedError, "not text"),
        ({"query_string": "words"}, NotImplementedError, "not text"),
        ({"filters": ComparisonFilter(type="eq", key="nope", value=1)}, InvalidRowError, "no such feature"),
        (
            {"filters": ComparisonFilter(type="gt", key="part", value="x")},
            InvalidRowError,
            "'part'.* cannot be compared",
        ),
        ({"features": [*FEATURES, "docs:nope"]}, InvalidRowError, r"\['nope'\].*join keys \['name', 'part'\]"),
        ({"filters": ComparisonFilter(type="eq", key="more", value="x")}, InvalidRowError, "values of its type cannot"),
        ({"filters": ComparisonFilter(type="gt", key="title", value=5)}, InvalidRowError, "cannot be compared"),
        ({"filters": ComparisonFilter(type="in", key="pages", value=5)}, InvalidRowError, "requires a list"),
        ({"filters": ComparisonFilter(type="gt", key="pages", value=2**64)}, InvalidRowError, r"7\d*16 cannot be comp"),
        ({"filters": ComparisonFilter(type="in", key="pages", value=[1, -(2**64)])}, InvalidRowError, "too large"),
        ({"filters": ComparisonFilter(type="eq", key="title", value="\ud800")}, InvalidRowError, r"ud800.* cannot be"),
    ],
)
def test_bad_requests_are_refused(store: FeatureStore, choice: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        answer(store, **choice)


def test_a_declared_metric_and_a_view_of_unlike_lengths(store: FeatureStore, tmp_path: Path) -> None:
    store.apply(docs(tmp_path, vector_index=True, vector_search_metric="cosine"))
    assert answer(store)["pages"] == expected("cosine")[:7]
    assert answer(store, query=[1.0, 2.0]).get("pages", []) == []


KINDS = {"a": ValueType.STRING, "c": ValueType.INT64, "b": ValueType.BYTES, "d": ValueType.BOOL, "e": ValueType.DOUBLE}


@pytest.mark.parametrize("text", ["", "x", "|", "\\", "\\e", "e", "a|b\\|c", "名\n|"])
def test_ids_turn_back_into_keys(text: str) -> None:
    for kinds in (KINDS, {"a": ValueType.STRING}, {"c": ValueType.INT32}, {"b": ValueType.BYTES}):
        values = {"a": text, "b": text.encode(), "c": -len(text), "d": bool(text), "e": 0.1 * len(text)}
        key = entity_key(_id(kinds, values), kinds)
        assert entity_ids([key]) == [_id(kinds, values)]
        assert list(key.join_keys) == list(kinds)
        for name, value in zip(key.join_keys, key.entity_values, strict=True):
            assert getattr(value, value.WhichOneof("val")) == values[name]
        columns = key_columns(pa.array([_id(kinds, values)] * 2)[1:], kinds)
        assert {name: column.to_pylist() for name, column in columns.items()} == {
            name: [values[name]] for name in kinds
        }


def test_keys_without_escapes_turn_back_into_columns() -> None:
    ids = pa.array(["x|1", "y|-2"])
    columns = key_columns(ids, {"b": ValueType.INT32, "a": ValueType.STRING})
    assert (columns["a"].to_pylist(), columns["b"].to_pylist()) == (["x", "y"], [1, -2])
    assert key_columns(ids[:0], {"b": ValueType.INT32, "a": ValueType.STRING})["b"].to_pylist() == []


def _id(kinds: dict[str, ValueType], values: dict[str, Any]) -> str:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    protos = [Value(**{f"{kind.name.lower()}_val": values[name]}) for name, kind in kinds.items()]
    return entity_ids([EntityKey(join_keys=list(kinds), entity_values=protos)])[0]


def test_frames_of_every_kind_of_column_are_written_alike(store: FeatureStore) -> None:
    columns = frame()
    kinds: dict[str, pd.DataFrame] = {
        "category": columns.astype({"name": "category", "part": "category", "title": "category"}),
        "string": columns.astype({"name": "string", "title": "string", "part": "Int64", "open": "boolean"}),
        "arrow": pa.Table.from_pandas(columns).to_pandas(types_mapper=pd.ArrowDtype),
        "views": columns.assign(name=pd.Series(NAMES, dtype=pd.ArrowDtype(pa.string_view()))),
    }
    entities = [{"name": NAMES[row], "part": row - 5} for row in range(COUNT)]
    features = ["docs:embedding", "docs:title", "docs:open", "docs:pages"]
    expected_rows = store.get_online_features(features, entities).to_dict()
    for number, (kind, given) in enumerate(kinds.items(), 1):
        later = pd.to_datetime([NOON + dt.timedelta(days=number)] * COUNT)
        store.write_to_online_store("docs", given.assign(at=later, pages=np.arange(COUNT) + number))
        rows = store.get_online_features(features, entities).to_dict()
        assert rows == expected_rows | {"pages": [page + number for page in range(COUNT)]}, kind
