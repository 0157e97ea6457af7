"""A history beside the online store: written by whoever applies, and what a machine comes back from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore

from quorin.engine.backend import connect
from quorin.offline import ParquetDatasetStore
from quorin.schema import schema_from_json
from tests.feast.repos import CUSTOMERS, END, START, definitions, make_store

FEATURES = ["customer_stats:score", "customer_stats:city"]
ROWS = [{"customer": name} for name in [*CUSTOMERS, "nobody"]]


@pytest.fixture
def online_store(online_store: dict[str, Any]) -> dict[str, Any]:
    return {**online_store, "offline_path": "data/history"}


def pushed(score: float) -> pd.DataFrame:
    return pd.DataFrame({"customer": [CUSTOMERS[1]], "at": [END], "score": [score], "city": ["pushed"]})


def answers(store: FeatureStore) -> dict[str, Any]:
    found: dict[str, Any] = store.get_online_features(FEATURES, ROWS).to_dict()
    return found


def test_a_machine_that_lost_memory_and_log_serves_from_the_history(
    store: FeatureStore, online_store: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    store.materialize(START, END)
    store.push("customer_push", pushed(77.0))
    served = answers(store)
    assert served["score"][1] == 77

    backend = connect(online_store.get("redis_url") or str(tmp_path / "repo" / "data" / "quorin"))
    backend.log().trim(backend.log().bounds().last)
    for path in Path(online_store["shm_dir"]).iterdir():
        path.unlink()
    again = make_store(tmp_path / "repo", online_store, data=data)
    assert answers(again) == served

    schema = next(
        schema_from_json(text) for name, text in backend.control.schemas().items() if "customer_stats" in name
    )
    history = ParquetDatasetStore(tmp_path / "repo" / "data" / "history")
    assert len(history.distinct_entity_ids(schema)) == len(CUSTOMERS)
    assert len(history.latest_features(schema)) == len(CUSTOMERS)
    backend.close()


def test_a_view_that_is_applied_again_begins_anew(store: FeatureStore, data: Path) -> None:
    store.materialize(START, END)
    view = store.get_feature_view("customer_stats")
    whole = definitions(data)
    store.apply([], objects_to_delete=[view], partial=False)
    store.apply(whole)
    assert answers(store)["score"] == [None] * len(ROWS)
    store.push("customer_push", pushed(0.5))
    assert [score for score in answers(store)["score"] if score is not None] == [0.5]
