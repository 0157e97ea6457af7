"""JSON is written from what was read as Feast writes it from the protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.feature_server_utils import convert_response_to_dict
from feast.types import Bool, Float32, Float64, Int32, Int64, PrimitiveFeastType

from feast_quorin.read.row_response import RowResponse
from feast_quorin.server import json_body
from tests.feast.repos import day, make_store

TYPES: dict[str, PrimitiveFeastType] = {
    "50%b": Float32, "float64": Float64, "int32": Int32, "int64": Int64, "bool": Bool, "%%": Float64,
}  # fmt: skip
NUMBERS = {"50%b": 0.1, "float64": 1e300, "int32": -7, "int64": 2**62 + 1, "bool": True, "%%": -0.0}
ROWS: dict[str, dict[str, Any]] = {
    "whole": NUMBERS,
    '100%b "quoted"': {**NUMBERS, "float64": 1e-7, "bool": False},
    "nan": {**NUMBERS, "50%b": float("nan")},
    "infinite": {**NUMBERS, "float64": float("-inf"), "%%": float("inf")},
    "null": {**NUMBERS, "int64": None, "bool": None},
    "empty": dict.fromkeys(NUMBERS),
}


@pytest.fixture(scope="module")
def numbers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    folder = tmp_path_factory.mktemp("json")
    (folder / "segments").mkdir()
    settings = {"type": "quorin", "shm_dir": str(folder / "segments"), "capacity": 64}
    store = make_store(folder / "repo", settings, data=data)
    key = Entity(name="key", join_keys=["key"], value_type=ValueType.STRING)
    fields = [Field(name=name, dtype=kind) for name, kind in TYPES.items()]
    source = FileSource(path=str(folder / "none.parquet"), timestamp_field="at")
    store.apply([key, FeatureView(name="numbers", entities=[key], schema=fields, source=source, online=True)])
    frame = pd.DataFrame({name: pd.array([row[name] for row in ROWS.values()], dtype=object) for name in TYPES})
    store.write_to_online_store("numbers", frame.assign(key=[*ROWS], at=[day(9)] * len(ROWS)))
    yield store
    store.teardown()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("names", [[*TYPES], ["float64"], ["%%", "50%b"], ["bool", "int64"]])
@pytest.mark.parametrize("full_names", [False, True])
@pytest.mark.parametrize("keys", [*([key] for key in ROWS), ["absent"], [*ROWS, "absent"], ["whole", "whole"]])
def test_the_json_is_that_of_the_protobuf(
    numbers: FeatureStore, keys: list[str], names: list[str], *, full_names: bool
) -> None:
    def ask() -> Any:
        features = [f"numbers:{name}" for name in names]
        return numbers.get_online_features(features, {"key": keys}, full_feature_names=full_names)

    response = ask()
    assert isinstance(response, RowResponse) == (len(keys) == 1)
    expected = convert_response_to_dict(ask().proto)
    assert _text(orjson.loads(json_body.body(response))) == _text(expected)


def _text(answer: Any) -> bytes:
    """An answer as text, which tells ``1``, ``1.0`` and ``true`` apart."""
    return orjson.dumps(answer, option=orjson.OPT_SORT_KEYS)
