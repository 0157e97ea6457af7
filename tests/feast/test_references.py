"""Saved datasets as references: checks of a replacement compare with them, and no code of the registry runs."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dill
import pandas as pd
import pytest
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Float64, String

from feast_quorin.references import reference_rows
from quorin.errors import CheckFailedError, RepositoryError
from tests.feast.repos import day
from tests.support.commands import run_quorin

END = day(40)
KEYS = list(range(20))


def objects(folder: Path, reference: str = "good") -> list[Any]:
    entity = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
    checks = "[{check: mean_drift, field: amount, at_most: 1}, {check: row_count, min_share: 0.5}]"
    view = FeatureView(
        name="prices-of",
        entities=[entity],
        ttl=dt.timedelta(days=365),
        schema=[Field(name="amount", dtype=Float64), Field(name="name", dtype=String)],
        source=FileSource(path=str(folder / "prices.parquet"), timestamp_field="at"),
        tags={"quorin_checks": checks, "quorin_reference": reference},
    )
    return [entity, view]


def write(folder: Path, at: dt.datetime, scale: float) -> None:
    amounts = [scale * (1 + key % 5) for key in KEYS]
    frame = pd.DataFrame({"key": KEYS, "at": at, "amount": amounts, "name": [f"n{key}" for key in KEYS]})
    frame.to_parquet(folder / "prices.parquet")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    (tmp_path / "shm").mkdir()
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": str(tmp_path / "registry.db"),
        "online_store": {"type": "quorin", "path": str(tmp_path / "store"), "shm_dir": str(tmp_path / "shm")},
        "batch_engine": {"type": "feast_quorin.QuorinComputeEngine", "mode": "replace"},
        "entity_key_serialization_version": 3,
    }
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    write(tmp_path, day(0), 1.0)
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply(objects(tmp_path))
    keep(store, "good", ["prices-of:amount"])
    yield store
    store.teardown()


def keep(store: FeatureStore, name: str, features: list[str], *, full: bool = False) -> None:
    """A saved dataset with two rows of each entity."""
    keys = pd.DataFrame({"key": KEYS * 2, "event_timestamp": [day(1)] * len(KEYS) + [day(2)] * len(KEYS)})
    job = store.get_historical_features(entity_df=keys, features=features, full_feature_names=full)
    path = str(Path(store.config.repo_path or "") / f"{name}.parquet")
    store.create_saved_dataset(job, name, SavedDatasetFileStorage(path=path), allow_overwrite=True)


def amounts(store: FeatureStore) -> list[float | None]:
    rows = [{"key": 0}, {"key": 4}]
    found: list[float | None] = store.get_online_features(["prices-of:amount"], rows).to_dict()["amount"]
    return found


def test_a_materialization_is_checked_beside_the_saved_dataset_of_its_view(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dill, "loads", lambda *_: pytest.fail("something was unpickled"))
    write(tmp_path, day(3), 1.3)
    store.materialize(day(-1), END)  # Nothing is served yet, and the reference is near.
    assert amounts(store) == [1.3, 6.5]
    write(tmp_path, day(4), 1.6)
    # From what is served the mean is half a standard deviation away, from the reference more than one.
    with pytest.raises(CheckFailedError, match=r"prices-of does not pass .* mean_drift of 'amount': .*, served 3"):
        store.materialize(day(-1), END)
    assert amounts(store) == [1.3, 6.5]


def test_a_command_takes_a_saved_dataset_or_a_file(store: FeatureStore, tmp_path: Path) -> None:
    keep(store, "full", ["prices-of:amount", "prices-of:name"], full=True)
    ids = [f"{key}" for key in KEYS]
    near, far = tmp_path / "near.parquet", tmp_path / "far.parquet"
    for path, scale in ((near, 1.2), (far, 3.0)):
        rows = {"entity_id": ids, "amount": [scale * (1 + key % 5) for key in KEYS], "name": ["n"] * len(KEYS)}
        pd.DataFrame(rows).to_parquet(path)

    def run(*words: str, code: int) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QUORIN_")}
        done = run_quorin(["replace", *words], kept, directory=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    (view,) = store.provider.online_store.registry(store.config).backend.control.schemas()
    for reference in ("good", "full", str(near)):
        run(view, "--from", str(near), "--reference", reference, code=0)
    for reference in ("good", "full", str(near)):
        said = run(view, "--from", str(far), "--reference", reference, code=3)
        assert "mean_drift of 'amount'" in said
    run(view, "--from", str(far), "--reference", str(far), code=0)
    assert "no_such" in run(view, "--from", str(far), "--reference", "no_such", code=1)
    assert "--reference is for" in run(view, "--from", "history", "--reference", "good", code=2)


def test_rows_of_a_reference_are_those_of_the_view(store: FeatureStore) -> None:
    (view,) = store.list_feature_views()
    found = reference_rows(store.config, store.registry, view, "good").to_pydict()
    rows = sorted(zip(map(int, found["entity_id"]), found["amount__double"], strict=True))
    assert rows == [(key, 1.0 + key % 5) for key in KEYS for _ in range(2)]
    assert set(found) == {"entity_id", "event_time_ns", "amount__double"}


def test_a_reference_that_cannot_be_read_is_named(store: FeatureStore, tmp_path: Path) -> None:
    (view,) = store.list_feature_views()
    with pytest.raises(RepositoryError, match="none_such"):
        reference_rows(store.config, store.registry, view, "none_such")
    (tmp_path / "good.parquet").unlink()
    with pytest.raises(RepositoryError, match="saved dataset 'good' cannot be read"):
        reference_rows(store.config, store.registry, view, "good")
    store.apply(objects(tmp_path, reference="none_such"))
    with pytest.raises(RepositoryError, match="none_such"):
        store.materialize(day(-1), END)
