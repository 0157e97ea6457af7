"""A model of each library, trained on the same rows: how it predicts from a frame, as usual, and from a matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

CATEGORY, TREES = "city", 20
Predict = Callable[[Any], Any]


class Model(NamedTuple):
    """Predicts the probability of each row, from a frame of strings and numbers, or from a matrix; its categories."""

    from_frame: Predict
    from_matrix: Predict
    categories: Mapping[str, list[str]]


def trained(training: pd.DataFrame, target: Any, categories: list[str]) -> dict[str, Model]:
    """By library. All predict in the thread that calls them, which is the quickest for few rows."""
    kind = pd.CategoricalDtype(categories)
    typed = training.astype({CATEGORY: kind})
    return {
        "LightGBM": _lightgbm(typed, target, kind),
        "XGBoost": _xgboost(typed, target, kind),
        **_scikit_learn(training, target, categories),
    }


def _lightgbm(training: pd.DataFrame, target: Any, kind: Any) -> Model:
    import lightgbm

    from quorin.assembly import model_inputs

    model = lightgbm.LGBMClassifier(n_estimators=TREES, verbose=-1, n_jobs=1).fit(training, target)
    predict = partial(model.booster_.predict, num_threads=1)
    categories = model_inputs(model)["categories"]
    return Model(lambda frame: predict(frame.astype({CATEGORY: kind})), predict, categories)


def _xgboost(training: pd.DataFrame, target: Any, kind: Any) -> Model:
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=TREES, enable_categorical=True, n_jobs=1).fit(training, target)
    return Model(
        lambda frame: model.predict_proba(frame.astype({CATEGORY: kind}))[:, 1],
        partial(model.get_booster().inplace_predict, validate_features=False),
        {CATEGORY: list(kind.categories)},
    )


def _scikit_learn(training: pd.DataFrame, target: Any, categories: list[str]) -> dict[str, Model]:
    """A pipeline that encodes the category, and the same in ONNX behind the encoder."""
    import onnxruntime
    from skl2onnx import to_onnx
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler

    encoder = make_column_transformer((OrdinalEncoder(categories=[categories]), [CATEGORY]), remainder="passthrough")
    matrix = encoder.fit_transform(training).astype(np.float32)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(matrix, target)
    converted = to_onnx(model, matrix[:1], options={"zipmap": False}, target_opset=18).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(converted, options, providers=["CPUExecutionProvider"])

    def encoded(frame: pd.DataFrame) -> Any:
        return encoder.transform(frame).astype(np.float32)

    def run(rows: Any) -> Any:
        return session.run(["probabilities"], {"X": rows})[0][:, 1]

    def predict(rows: Any) -> Any:
        return model.predict_proba(rows)[:, 1]

    own = {CATEGORY: list(encoder.named_transformers_["ordinalencoder"].categories_[0])}
    return {
        "scikit-learn": Model(lambda frame: predict(encoded(frame)), predict, own),
        "ONNX Runtime": Model(lambda frame: run(encoded(frame)), run, own),
    }
