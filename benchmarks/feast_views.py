"""What the benchmark of Feast's requests reads: the views, their rows, and the requests themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

WIDE, EMBEDDING = 50, 128
STACKED, STACKED_OR_LISTS = "to_tensor stacked (Feast: torch.tensor)", "to_tensor stacked (Feast: lists)"
"""Embeddings as one tensor, by Quorin's own keyword; Feast's lists are made one with ``torch.tensor``, or left so."""
_PARTS = ("first", "second", "third")
_TIME = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Request:
    """A request: its features or the name of a service, its key, how many rows, and what is made of the answer."""

    name: str
    features: list[str] | str
    rows: int
    forms: tuple[str, ...]
    key: str = "id"

    def entity_rows(self, rng: np.random.Generator, entities: int) -> list[dict[str, Any]]:
        """Rows for entities that are there."""
        make: Callable[[Any], Any] = int if self.key == "id" else lambda number: f"user_{number:06}"
        return [{self.key: make(number)} for number in rng.integers(entities, size=self.rows)]


def requests() -> list[Request]:
    """All that is measured."""
    wide = [f"wide:f{number:02}" for number in range(WIDE)]
    embedding = ["vectors:clicks", "vectors:rate", "vectors:score", "vectors:embedding"]
    return [
        Request("1 row × 4, int key", wide[:4], 1, ("to_dict", "to_df", "proto")),
        Request("1 row × 4, str key", [f"named:f{number:02}" for number in range(4)], 1, ("to_dict", "to_df"), "name"),
        Request("100 rows × 50", wide, 100, ("to_dict", "to_df", "proto")),
        Request("1,000 rows × 50", wide, 1000, ("to_dict", "to_df")),
        Request("100 rows × (3 + embedding)", embedding, 100, ("to_dict", "to_df")),
        Request("1,000 rows × (3 + embedding)", embedding, 1000, ("to_arrow", "to_tensor", STACKED, STACKED_OR_LISTS)),
        Request("service of 3 views, 1 row", "plain", 1, ("to_dict",)),
        Request("service of 3 views, 100 rows", "plain", 100, ("to_dict", "to_df")),
        Request("3 views and on-demand, 1 row", "computed", 1, ("to_dict",)),
        Request("3 views and on-demand, 100 rows", "computed", 100, ("to_dict", "to_df")),
    ]


def fill(store: Any, directory: Path, *, entities: int) -> None:
    """Apply the views and services, and write ``entities`` rows to each view."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Array, Float32, Float64, Int64, String

    rng = np.random.default_rng(7)
    by_id = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    by_name = Entity(name="name", join_keys=["name"], value_type=ValueType.STRING)
    floats = {f"f{number:02}": Float32 for number in range(WIDE)}
    parts = {part: {f"{part}_{number}": Float32 for number in range(4)} for part in _PARTS}
    vectors = {"clicks": Int64, "rate": Float32, "score": Float64, "embedding": Array(Float32)}
    views = {}
    layouts: list[tuple[str, Any, dict[str, Any]]] = [
        ("wide", by_id, floats),
        ("named", by_name, dict.fromkeys(list(floats)[:4], Float32)),
        ("vectors", by_id, vectors),
        *((part, by_id, types) for part, types in parts.items()),
    ]
    for name, entity, types in layouts:
        path = directory / f"{name}.parquet"
        if not path.exists():
            _rows(name, types, entities, rng).to_parquet(path)
        key = Field(name=entity.join_key, dtype=Int64 if entity is by_id else String)
        views[name] = FeatureView(
            name=name,
            entities=[entity],
            ttl=timedelta(0),
            schema=[key, *(Field(name=feature, dtype=kind) for feature, kind in types.items())],
            source=FileSource(path=str(path), timestamp_field="event_timestamp"),
        )
    computed = _on_demand(views["first"], Field(name="total", dtype=Float64))
    services = [
        FeatureService(name="plain", features=[views[part] for part in _PARTS]),
        FeatureService(name="computed", features=[*(views[part] for part in _PARTS), computed]),
    ]
    store.apply([by_id, by_name, *views.values(), computed, *services])
    for name in views:
        store.write_to_online_store(name, pd.read_parquet(directory / f"{name}.parquet"))


def _on_demand(source: Any, *schema: Any) -> Any:
    from feast.on_demand_feature_view import on_demand_feature_view

    @on_demand_feature_view(sources=[source], schema=list(schema), mode="python")
    def summed(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"total": [a + b for a, b in zip(inputs["first_0"], inputs["first_1"], strict=True)]}

    return summed


def _rows(name: str, types: dict[str, Any], entities: int, rng: np.random.Generator) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for feature in types:
        if feature == "embedding":
            columns[feature] = list(rng.standard_normal((entities, EMBEDDING), dtype=np.float32))
        elif feature == "clicks":
            columns[feature] = rng.integers(1000, size=entities)
        else:
            kind = np.float64 if feature == "score" else np.float32
            columns[feature] = rng.standard_normal(entities).astype(kind)
    keys = [f"user_{number:06}" for number in range(entities)] if name == "named" else np.arange(entities)
    return pd.DataFrame({"name" if name == "named" else "id": keys, "event_timestamp": _TIME, **columns})
