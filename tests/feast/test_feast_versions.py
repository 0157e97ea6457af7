"""A part of the plugin that misses what it needs of Feast leaves its work to Feast's own code, and says so once.

Feasts that differ are told from the installed one by what a part needs: a name, a signature or a version that it lacks.
With ``test_against_sqlite.py`` this file is what runs on the oldest Feast, see ``docs/contributing.md``.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import feast
import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Int64
from structlog.testing import capture_logs

from feast_quorin import feast_private
from feast_quorin.feast_versions import (
    ARROW_MATERIALIZATION,
    COMPILED_READS,
    DOCUMENTS,
    METRICS,
    NEWEST,
    OLDEST,
    ON_DEMAND,
    VIEW_READS,
    FeastPart,
    has,
    installed,
    say_lost,
)
from feast_quorin.read.response import LazyResponse
from quorin.engine.ops import health
from tests.feast.repos import END, REQUESTS, START, ask, definitions, make_store

PARTS = [COMPILED_READS, VIEW_READS, ON_DEMAND, DOCUMENTS, METRICS, ARROW_MATERIALIZATION]
NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
DISTANCES = {5: 2.0, 3: 4.0, 9: 0.0, 1: 3.0, 7: 1.0}


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes parts need a function that Feast does not have."""
    forget()

    def lack(*parts: FeastPart) -> None:
        for part in parts:
            monkeypatch.setitem(part.needs, "feast.utils:_renamed", 1)

    yield lack
    forget()


@pytest.fixture
def quorin_store(data: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    online = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(tmp_path), "capacity": 64}
    store = make_store(tmp_path / "repo", online, data=data, batch_engine={"type": "feast_quorin.QuorinComputeEngine"})
    store.apply(definitions(data))
    yield store
    store.teardown()


def forget() -> None:
    has.cache_clear()
    say_lost.cache_clear()


def events(logs: list[Any]) -> list[Any]:
    return [event for event in logs if event["event"] == "feast_differs"]


def test_the_installed_feast_is_one_that_the_tests_speak_for():
    assert OLDEST <= installed() <= NEWEST


@pytest.mark.parametrize(
    ("version", "status"), [("0.63.9", "problem"), ("0.64.0", "ok"), ("0.67.2", "ok"), ("0.68.0", "warning")]
)
def test_doctor_has_the_same_versions(version: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert (health.OLDEST_FEAST, health.NEWEST_FEAST) == (OLDEST, NEWEST)
    found = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: version if name == "feast" else found(name))
    [check] = [check for check in health.check_machine(tmp_path) if check.name == "Feast"]
    assert (check.status, check.found.split(",")[0]) == (status, f"version {version}")


def test_feast_has_what_every_part_needs_by_name():
    known = {ON_DEMAND: installed() < ON_DEMAND.since}
    forget()
    assert [part.lost for part in PARTS if not has(part) and not known.get(part)] == []


def test_answers_without_any_part_are_those_with_all_of_them(
    quorin_store: FeatureStore, sqlite_store: FeatureStore, lacking: Any
):
    lacking(*PARTS)
    with capture_logs() as logs:
        quorin_store.materialize(START, END)
        for name in REQUESTS:
            response = ask(quorin_store, name)
            assert not isinstance(response, LazyResponse)
            assert response.to_dict() == ask(sqlite_store, name).to_dict()
    assert {event["lost"] for event in events(logs)} == {
        part.lost for part in (COMPILED_READS, VIEW_READS, ARROW_MATERIALIZATION)
    }
    assert len(events(logs)) == 3
    assert {(event["feast"], event["log_level"]) for event in logs} == {(feast.__version__, "warning")}


def test_only_requests_with_on_demand_views_lose_what_those_need(
    quorin_store: FeatureStore, sqlite_store: FeatureStore, lacking: Any
):
    lacking(ON_DEMAND)
    quorin_store.materialize(START, END)
    slow = set()
    for name in REQUESTS:
        response = ask(quorin_store, name)
        slow |= set() if isinstance(response, LazyResponse) else {name}
        assert response.to_dict() == ask(sqlite_store, name).to_dict()
    assert slow == {name for name in REQUESTS if any("boosted" in str(f) for f in REQUESTS[name]["features"])}


def test_a_request_that_feast_resolves_otherwise_takes_its_own_path(
    quorin_store: FeatureStore, sqlite_store: FeatureStore, lacking: Any, monkeypatch: pytest.MonkeyPatch
):
    quorin_store.materialize(START, END)
    monkeypatch.setattr(feast_private, "RequestContext", NamedTuple("Shorter", [("references", list[str])]))
    with capture_logs() as logs:
        for _ in range(2):
            response = ask(quorin_store, "string keys")
            assert response.to_dict() == ask(sqlite_store, "string keys").to_dict()
    (event,) = events(logs)
    assert event["missing"].startswith("feast.utils:_get_online_request_context: ")


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"needs": {"feast.utils:_parse_feature_ref": 7}}, "feast.utils:_parse_feature_ref"),
        ({"needs": {"feast.nowhere:_f": 1}}, "feast.nowhere:_f"),
        ({"needs": {"feast.utils:_Nobody._f": None}}, "feast.utils:_Nobody._f"),
        ({"needs": {}, "since": (9, 0)}, "a version from 9.0"),
        ({"needs": {}, "until": (0, 1)}, "a version from 0.64 to 0.1"),
    ],
)
def test_a_name_a_signature_and_a_version_can_be_missing(changes: dict[str, Any], missing: str):
    part = FeastPart("speed", **changes)
    with capture_logs() as logs:
        assert [has(part), has(part)] == [False, False]
    assert logs == [
        {
            "logger": "feast_quorin.feast_versions",
            "event": "feast_differs",
            "feast": feast.__version__,
            "missing": missing,
            "lost": "speed",
            "log_level": "warning",
        }
    ]


@pytest.mark.parametrize("is_known", [True, False])
def test_documents_keep_their_own_keys(tmp_path: Path, lacking: Any, monkeypatch: pytest.MonkeyPatch, is_known: bool):
    store = make_store(tmp_path / "repo", {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(tmp_path)})
    frame = pd.DataFrame({"doc": DISTANCES.keys(), "at": pd.Timestamp(NOON), "pages": [n * 10 for n in DISTANCES]})
    frame["embedding"] = [[distance, 0.0] for distance in DISTANCES.values()]
    frame.to_parquet(tmp_path / "docs.parquet")
    doc = Entity(name="doc", join_keys=["doc"], value_type=ValueType.INT64)
    schema = [Field(name="pages", dtype=Int64), Field(name="embedding", dtype=Array(Float32), vector_index=True)]
    source = FileSource(path=str(tmp_path / "docs.parquet"), timestamp_field="at")
    store.apply([doc, FeatureView(name="docs", entities=[doc], schema=schema, source=source)])
    store.write_to_online_store("docs", frame)
    if not is_known:
        lacking(DOCUMENTS)
    query = {"query": [0.0, 0.0], "top_k": 5, "distance_metric": "L2"}
    features = ["docs:doc", "docs:embedding", "docs:pages"]
    found = store.retrieve_online_documents_v2(features=features, **query).to_dict()
    assert {key: pages // 10 for key, pages in zip(found["doc"], found["pages"], strict=True)} == {
        n: n for n in DISTANCES
    }
    assert found["distance"] == [DISTANCES[key] for key in found["doc"]]
    assert found["doc"] == (sorted(DISTANCES, key=DISTANCES.__getitem__) if is_known else sorted(DISTANCES))
    store.teardown()
