"""The same feature view with the same rows in Feast's SQLite and Redis stores and in Quorin's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

VIEW = "benchmark"
FIELDS = 50


def stores(directory: Path, redis_address: str) -> dict[str, Any]:
    """Feast stores by name, opened in directories of their own below `directory`."""
    from feast import FeatureStore, RepoConfig

    online = {
        "feast-sqlite": {"type": "sqlite", "path": str(directory / "online.db")},
        "feast-redis": {"type": "redis", "connection_string": redis_address},
        "feast-quorin": {"type": "feast_quorin.QuorinOnlineStore", "path": str(directory / "quorin")},
    }
    return {
        name: FeatureStore(
            config=RepoConfig(
                project="benchmark",
                provider="local",
                registry=str(directory / f"{name}.registry"),
                online_store=settings,
                entity_key_serialization_version=3,
            )
        )
        for name, settings in online.items()
    }


def fill(store: Any, directory: Path, *, entities: int) -> None:
    """Apply the view and write `entities` rows of float32 features to the store."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32

    rng = np.random.default_rng(7)
    names = feature_names(FIELDS)
    rows = pd.DataFrame(rng.standard_normal((entities, FIELDS), dtype=np.float32), columns=names)
    rows.insert(0, "id", np.arange(entities))
    rows["event_timestamp"] = datetime(2024, 1, 1, tzinfo=UTC)
    path = directory / "rows.parquet"
    rows.to_parquet(path)
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    view = FeatureView(
        name=VIEW,
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=name, dtype=Float32) for name in names],
        source=FileSource(path=str(path), timestamp_field="event_timestamp"),
    )
    store.apply([entity, view])
    store.write_to_online_store(VIEW, rows)


def feature_names(count: int) -> list[str]:
    """The first names of the view's features."""
    return [f"f{number:02}" for number in range(count)]


def references(count: int) -> list[str]:
    """The same as Feast's references."""
    return [f"{VIEW}:{name}" for name in feature_names(count)]
