"""Frames of many numbers, which are made of one block, and dictionaries of one row are what Feast makes of protobuf."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Float64, Int64, String

from tests.equivalence.test_compiled import generic
from tests.feast.repos import END, make_store
from tests.feast.test_against_sqlite import same

FLOATS = {f"f{number:02}": Float32 if number % 3 else Float64 for number in range(10)}
VIEWS: dict[str, dict[str, Any]] = {
    "numbers": FLOATS,
    "more": {f"more_{name}": kind for name, kind in FLOATS.items()},
    "mixed": {"count": Int64, "label": String, "embedding": Array(Float32), "score": Float64},
}
KEPT, WITHOUT_NULLS = 40, 30
ABSENT = KEPT + 1


@pytest.fixture
def wide(online_store: dict[str, Any], data: Path, tmp_path: Path) -> Any:
    """Views of many floats by number and by name; entities from ``WITHOUT_NULLS`` on have nulls."""
    store = make_store(tmp_path / "wide", online_store, data=data)
    by_id = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
    by_name = Entity(name="called", join_keys=["called"], value_type=ValueType.STRING)
    views = []
    for name, types in VIEWS.items():
        for entity in (by_id, by_name):
            source = FileSource(path=str(data / "drivers.parquet"), timestamp_field="at")
            schema = [Field(name=feature, dtype=kind) for feature, kind in types.items()]
            views.append(FeatureView(name=f"{name}_{entity.name}", entities=[entity], schema=schema, source=source))
    services = [
        FeatureService(name=entity.name, features=[view for view in views if view.entities == [entity.name]])
        for entity in (by_id, by_name)
    ]
    store.apply([by_id, by_name, *views, *services])
    for view in views:
        store.write_to_online_store(view.name, rows(view))
    yield store
    store.teardown()


def rows(view: FeatureView) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    key = view.entities[0]
    frame: dict[str, Any] = {key: [key_of(key, number) for number in range(KEPT)], "at": [END] * KEPT}
    for place, field in enumerate(view.features):
        values: list[Any] = (rng.standard_normal(KEPT) * 100).tolist()
        if field.dtype == Int64:
            values = [int(value) for value in values]
        elif field.dtype == String:
            values = [f"{value:.0f}" for value in values]
        elif field.dtype == Array(Float32):
            values = [[value, 1.5] for value in values]
        for number in range(WITHOUT_NULLS, KEPT):
            if (number + place) % 3 == 0:
                values[number] = None
        frame[field.name] = pd.Series(values, dtype="Int64" if field.dtype == Int64 else None)
    return pd.DataFrame(frame)


def key_of(entity: str, number: int) -> Any:
    return number - 7 if entity == "thing" else f"n|{number}" if number % 2 else f"n{number}"


@pytest.mark.parametrize("entity", ["thing", "called"])
def test_wide_answers_are_the_same(wide: FeatureStore, entity: str) -> None:
    choices: list[Any] = [
        wide.get_feature_service(entity),
        [f"numbers_{entity}:{name}" for name in FLOATS],
        [f"mixed_{entity}:score", *(f"numbers_{entity}:{name}" for name in reversed(FLOATS)), f"mixed_{entity}:count"],
        [f"mixed_{entity}:{name}" for name in VIEWS["mixed"]],
    ]
    for numbers in ([0], [WITHOUT_NULLS + 1], [ABSENT], [3, 1, 3], [*range(KEPT)], [5, ABSENT, 6], [ABSENT, ABSENT]):
        keys = {entity: [key_of(entity, number) for number in numbers]}
        for features in choices:
            request = {"features": features, "entity_rows": keys}
            same(wide.get_online_features(**request), generic(wide, **request))


def test_one_row_of_views_with_keys_of_their_own(wide: FeatureStore) -> None:
    features = [f"{view}:{name}" for view in ("numbers_thing", "mixed_called") for name in VIEWS[view.split("_")[0]]]
    for number, other in ((0, 1), (ABSENT, 2), (2, ABSENT), (WITHOUT_NULLS + 2, WITHOUT_NULLS + 3)):
        row = [{"called": key_of("called", other), "thing": key_of("thing", number)}]
        request = {"features": features, "entity_rows": row}
        same(wide.get_online_features(**request), generic(wide, **request))


def test_a_frame_is_the_callers_own(wide: FeatureStore) -> None:
    request = {"features": wide.get_feature_service("thing"), "entity_rows": {"thing": [-7, -6, -5]}}
    answer = wide.get_online_features(**request)
    first, second = answer.to_df(), answer.to_df()
    before = second.copy(deep=True)
    first.columns.name = "changed"
    first.loc[:, "f01"] = 0.0
    first.loc[:, "thing"] = 5
    first["embedding"].iloc[0].append(1.0)
    first.insert(0, "added", dt.datetime.now(tz=dt.UTC))
    pd.testing.assert_frame_equal(second, before)
    pd.testing.assert_frame_equal(answer.to_df(), before)
    pd.testing.assert_frame_equal(wide.get_online_features(**request).to_df(), before)
    assert answer.to_dict()["thing"] == [-7, -6, -5]


def test_integer_keys_of_every_size(wide: FeatureStore) -> None:
    """Keys become ids without a Python string each; what does not fit is refused as Feast refuses it."""
    sizes = [0, -1, 2**63 - 1, -(2**63), 10**18, -(10**18), 12345]
    key = {"thing": sizes, "at": [END] * len(sizes)}
    values = {name: [float(place) for place in range(len(sizes))] for name in FLOATS}
    wide.write_to_online_store("numbers_thing", pd.DataFrame(key | values))
    request: dict[str, Any] = {"features": ["numbers_thing:f00"], "entity_rows": {"thing": sizes}}
    assert wide.get_online_features(**request).to_dict()["f00"] == values["f00"]
    for size, value in zip(sizes, values["f00"], strict=True):
        one = request | {"entity_rows": [{"thing": size}]}
        assert wide.get_online_features(**one).to_dict() == {"thing": [size], "f00": [value]}
    for rows_ in ({"thing": [2**63, 1]}, [{"thing": 2**63}]):
        with pytest.raises(ValueError, match="out of range"):
            wide.get_online_features(**request | {"entity_rows": rows_})
