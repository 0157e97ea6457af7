"""What fitted models say of their columns and categories is what their own predictions of frames use."""

from __future__ import annotations

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from quorin.assembly import model_inputs, model_reader
from quorin.errors import InvalidRowError
from quorin.layout import insert_many
from quorin.schema import FeatureField, FeatureSchema, dtype

CITIES = ["Åse", "Oslo", "Rome"]


class Trips(FeatureSchema):
    """In another order than the model's."""

    version = 1
    fields = [
        FeatureField("zone", dtype.int32),
        FeatureField("city", dtype.string),
        FeatureField("age", dtype.float32),
        FeatureField("count", dtype.int64),
    ]


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    return pd.DataFrame(
        {
            "age": rng.standard_normal(300).astype(np.float32),
            "city": pd.Categorical(rng.choice(CITIES, 300)),
            "count": rng.integers(0, 9, 300),
            "zone": pd.Categorical(rng.choice([30, 10], 300)),
        }
    )


@pytest.fixture
def stored(registry):
    """Rows of the frame, and two with gaps and a city that no model knows."""
    rows = frame().iloc[:20].astype({"city": str, "zone": int})
    segment = registry.create(Trips, capacity=64)
    insert_many(segment, {"entity_id": [f"t{number}" for number in range(20)], **rows.to_dict("list")})
    gaps = {"age": [None, 1.0], "city": [None, "unknown"], "count": [3, 4], "zone": [None, 99]}
    insert_many(segment, {"entity_id": ["t20", "t21"], **gaps})
    return segment


def rows_as_trained(segment) -> pd.DataFrame:
    rows = frame().iloc[:20]
    gaps = pd.DataFrame({"age": [np.nan, 1.0], "city": [None, None], "count": [3, 4], "zone": [None, None]})
    types = {"city": rows["city"].dtype, "zone": rows["zone"].dtype, "age": np.float32}
    return pd.concat([rows, gaps.astype(types)], ignore_index=True)


IDS = [f"t{number}" for number in range(22)]


def labels() -> np.ndarray:
    trained = frame()
    return ((trained["age"] > 0) ^ (trained["city"] == "Oslo") ^ (trained["zone"] == 30)).to_numpy(int)


@pytest.mark.parametrize("is_file", [False, True], ids=["fitted", "loaded"])
def test_lightgbm(stored, is_file):
    model = lightgbm.LGBMClassifier(n_estimators=8, verbose=-1, n_jobs=1).fit(frame(), labels())
    booster = lightgbm.Booster(model_str=model.booster_.model_to_string()) if is_file else model
    inputs = model_inputs(booster)
    assert inputs == {
        "columns": ["age", "city", "count", "zone"],
        "categories": {"city": sorted(CITIES), "zone": [10, 30]},
    }
    matrix, _ = model_reader(stored, **inputs, dtype=np.float64).batch(IDS)
    found = model.booster_.predict(matrix, num_threads=1)
    np.testing.assert_array_equal(found, model.booster_.predict(rows_as_trained(stored), num_threads=1))


def test_lightgbm_with_categories_by_number_has_none_to_look_up(stored):
    numbers = frame().astype({"city": object})[["age", "count"]].to_numpy()
    data = lightgbm.Dataset(numbers, labels(), feature_name=["age", "count"], categorical_feature=["count"])
    booster = lightgbm.train({"verbose": -1, "num_threads": 1}, data, 3)
    assert model_inputs(booster) == {"columns": ["age", "count"], "categories": {}}


def test_xgboost(stored):
    trained = frame()
    model = xgboost.XGBClassifier(n_estimators=8, enable_categorical=True, n_jobs=1).fit(trained, labels())
    inputs = model_inputs(model)
    assert inputs["columns"] == list(trained)
    categories = {"city": sorted(CITIES), "zone": [10, 30]}
    if hasattr(model.get_booster(), "get_categories"):  # since 3.1; texts beyond ASCII are not relied on
        assert inputs["categories"] == {"zone": [10, 30]}
    matrix, _ = model_reader(stored, inputs["columns"], categories=categories).batch(IDS)
    booster = model.get_booster()
    found = booster.inplace_predict(matrix, validate_features=False)
    expected = booster.predict(xgboost.DMatrix(rows_as_trained(stored), enable_categorical=True))
    np.testing.assert_array_equal(found, expected)


def test_scikit_learn(stored):
    trained = frame()[["count", "age"]]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(trained, labels())
    inputs = model_inputs(pipeline)
    assert inputs == {"columns": ["count", "age"], "categories": {}}
    matrix, _ = model_reader(stored, **inputs, dtype=np.float64).batch(IDS[:20])
    rows = pd.DataFrame(matrix, columns=inputs["columns"])
    np.testing.assert_array_equal(pipeline.predict_proba(rows), pipeline.predict_proba(trained.iloc[:20]))


def test_xgboosts_texts_in_ascii_are_taken(stored):
    trained = frame().assign(city=lambda rows: rows["city"].cat.rename_categories({"Åse": "Bergen"}))
    model = xgboost.XGBClassifier(n_estimators=2, enable_categorical=True, n_jobs=1).fit(trained, labels())
    if hasattr(model.get_booster(), "get_categories"):
        categories = list(trained["city"].cat.categories)
        assert model_inputs(model)["categories"] == {"city": categories, "zone": [10, 30]}


@pytest.mark.parametrize(
    "model", [LogisticRegression(), xgboost.XGBClassifier(n_estimators=1)], ids=["sklearn", "xgboost"]
)
def test_models_without_names_are_refused(model):
    with pytest.raises(InvalidRowError, match="fit it with a table, or name them"):
        model_inputs(model.fit([[0.0], [1.0]], [0, 1]))
    with pytest.raises(InvalidRowError, match="fit it with a table, or name them"):
        model_inputs(object())
