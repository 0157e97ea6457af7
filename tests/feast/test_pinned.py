"""Pins and checks of feature views, as Feast's users have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, PushSource, ValueType
from feast.types import Float64, Int64, String

from feast_quorin import pinned
from feast_quorin.config import ConfigError
from quorin.engine.checks.stored import checks_of
from quorin.errors import GenerationNotFoundError, SchemaError
from quorin.schema import MeanDrift, NullShare, Range, RowCount
from tests.feast.repos import day, make_store
from tests.feast.test_kinds import source

KEY = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
ROWS = [{"key": key} for key in (1, 2, 3)]


def view(folder: Path, *fields: Field, **tags: str) -> FeatureView:
    pushed = PushSource(name="push", batch_source=source(folder, "push"))
    return FeatureView(name="prices", entities=[KEY], schema=list(fields), source=pushed, tags=tags)


def push(store: FeatureStore, at: int, **columns: Any) -> None:
    frame = {"key": [1, 2], "at": [day(at)] * 2} | {name: list(values) for name, values in columns.items()}
    store.push("push", pd.DataFrame(frame))


def answers(store: FeatureStore, *features: str) -> dict[str, list[Any]]:
    wanted = [f"prices:{feature}" for feature in features]
    found = store.get_online_features(wanted, ROWS).to_dict()
    one = store.get_online_features(wanted, ROWS[:1]).to_dict()
    assert all(found[name][:1] == one[name] for name in features)
    return {name: found[name] for name in features}


AMOUNT, NAME, RANK = (
    Field(name="amount", dtype=Float64),
    Field(name="name", dtype=String),
    Field(name="rank", dtype=Int64),
)


@pytest.fixture
def store(online_store: dict[str, Any], tmp_path: Path) -> Iterator[FeatureStore]:
    store = make_store(tmp_path / "repo", {**online_store, "keep_generations": 1}, data=tmp_path)
    store.apply([KEY, view(tmp_path, AMOUNT, NAME)])
    push(store, 0, amount=[1.0, 2.0], name=["a", "b"])
    yield store
    store.teardown()
    assert list(Path(online_store["shm_dir"]).glob("quorin_shop*")) == []


def test_an_old_model_reads_beside_a_new_one(store: FeatureStore, tmp_path: Path) -> None:
    old = {"amount": [1.0, 2.0, None], "name": ["a", "b", None]}
    with pinned(store) as staying:
        assert answers(staying, "amount", "name") == old
        push(store, 1, amount=[5.0, 6.0], name=["x", "y"])
        # Until another generation takes its place, what is written to it shows.
        assert answers(staying, "amount") == {"amount": [5.0, 6.0, None]}
        store.apply([KEY, view(tmp_path, AMOUNT, RANK)])
        push(store, 2, amount=[7.0, 8.0], rank=[70, 80])
        assert answers(store, "amount", "rank") == {"amount": [7.0, 8.0, None], "rank": [70, 80, None]}
        assert answers(staying, "amount", "name") == {"amount": [5.0, 6.0, None], "name": ["x", "y", None]}
        push(staying, 3, amount=[9.0, 9.5], rank=[1, 2])  # Writes go to the current generation.
        assert answers(store, "amount") == {"amount": [9.0, 9.5, None]}
        assert answers(staying, "amount") == {"amount": [5.0, 6.0, None]}
    registry = store.provider.online_store.registry(store.config)
    assert [(one.state, one.is_pinned) for one in registry.generations("shop__prices")] == [
        ("current", False),
        ("kept", False),
    ]
    with pinned(store, {"prices": "v1"}) as back:
        assert answers(back, "amount") == {"amount": [5.0, 6.0, None]}
        assert answers(store, "amount") == {"amount": [9.0, 9.5, None]}
    with pinned(store, {"prices": 17}) as gone, pytest.raises(GenerationNotFoundError, match="no generation 17"):
        answers(gone, "amount")
    with pytest.raises(ConfigError, match="'v3', or 'current', got"), pinned(store, {"prices": "newest"}):
        pass


def test_tags_declare_checks(store: FeatureStore, tmp_path: Path) -> None:
    control = store.provider.online_store.registry(store.config).backend.control
    schema = store.provider.online_store.session(store.config).catalogue.current_schema("shop__prices")
    assert schema is not None
    assert checks_of(schema, control) == ()
    name = Field(name="name", dtype=String, tags={"quorin_checks": "[{check: null_share, at_most: 0.1}]"})
    amount = Field(name="amount", dtype=Float64, tags={"quorin_checks": '[{"check": "range", "low": 0}]'})
    tags = "- {check: row_count, min_share: 0.9}\n- {check: mean_drift, field: amount, at_most: 1}"
    store.apply([KEY, view(tmp_path, amount, name, quorin_checks=tags)])
    assert set(checks_of(schema, control)) == {
        RowCount(min_share=0.9),
        MeanDrift("amount__double", at_most=1),
        Range("amount__double", low=0),
        NullShare("name__string", at_most=0.1),
    }
    for wrong in (
        "nonsense",
        "[{check: range, field: price, low: 0}]",
        "[{check: range, field: name, low: 0}]",
        "{a: [",
    ):
        with pytest.raises(SchemaError, match=r"prices.*quorin_checks"):
            store.apply([KEY, view(tmp_path, AMOUNT, NAME, quorin_checks=wrong)])
    store.apply([KEY, view(tmp_path, AMOUNT, NAME)])
    assert checks_of(schema, control) == ()
