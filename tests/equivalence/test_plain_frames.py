"""Frames of one plain row are logged as the Arrow tables that they would be."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import Field
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_quorin.convert.codecs import codec_for
from feast_quorin.names import field_name
from feast_quorin.views import StoredFeature, StoredView
from feast_quorin.write.one_row_frame import plain_row
from feast_quorin.write.tables import TableReader
from quorin.engine.log.record import decode
from quorin.engine.log.record_fast import encode_row
from quorin.engine.rows.batch import to_batch
from quorin.schema import make_schema

NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
KINDS = {"half": Float32, "whole": Float64, "small": Int32, "big": Int64, "flag": Bool, "text": String}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["", "a|b", "back\\slash"])
FLOATS = st.floats(width=32) | st.floats() | st.integers(-(2**60), 2**60) | st.just(2**24 + 1)
INTEGERS = st.integers(-(2**31), 2**31 - 1) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(-9, 9)
AWARE = st.integers(-(2**52), 2**52).map(lambda us: NOON + dt.timedelta(microseconds=us))
TIMES = AWARE | AWARE.map(lambda time: time.replace(tzinfo=None))
STAMPS = st.integers(-(2**62), 2**62).map(lambda ns: pd.Timestamp(ns, tz="UTC")) | st.just(pd.NaT)


def view_of(kinds: dict[str, Any], keys: dict[str, Any]) -> tuple[StoredView, Any]:
    fields = [Field(name=name, dtype=kind) for name, kind in kinds.items()]
    features = {
        field.name: StoredFeature(field_name(field.name, kind.name.lower()), codec_for(kind))
        for field, kind in ((field, field.dtype.to_value_type()) for field in fields)
    }
    schema = make_schema("V", [stored.codec.field(stored.field) for stored in features.values()])
    source = SimpleNamespace(timestamp_field="at", created_timestamp_column="")
    entities = [Field(name=name, dtype=kind) for name, kind in keys.items()]
    table = SimpleNamespace(name="v", features=fields, entity_columns=entities, batch_source=source)
    return StoredView("v", schema, features), table


def by_table(view: StoredView, table: Any, frame: pd.DataFrame) -> str:
    return shown(to_batch(view.schema, TableReader(view, table)(pa.Table.from_pandas(frame))))


def shown(batch: pa.RecordBatch) -> str:
    """Schema and rows as text, in which not-a-numbers are equal."""
    return f"{batch.schema} {batch.to_pylist()}"


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"half": FLOATS, "whole": FLOATS, "small": INTEGERS, "big": INTEGERS, "flag": st.booleans(), "text": TEXTS}
    ),
    st.fixed_dictionaries({"id": st.integers(-(2**63), 2**63 - 1), "town": TEXTS}),
    TIMES | STAMPS,
    st.sampled_from([None, None, None, "half", "text", "town", "id"]),
)
def test_a_plain_row_is_what_its_table_would_be(
    values: dict[str, Any], keys: dict[str, Any], at: Any, missing: str | None
) -> None:
    view, table = view_of(KINDS, {"id": Int64, "town": String})
    frame = pd.DataFrame({name: [value] for name, value in {**values, **keys, "at": at, "unasked": 1}.items()})
    if missing is not None:
        frame[missing] = None
    row = plain_row(view, table, frame, None)
    if row is not None:
        assert shown(decode(encode_row(view.schema, *row)).batch) == by_table(view, table, frame)


@pytest.mark.parametrize("name", ["half", "whole"])
@pytest.mark.parametrize("value", [0.1, -0.0, 1e-46, 3.4e38, np.inf, np.nan, np.float32(0.1), 7])
def test_floats_are_plain(name: str, value: Any) -> None:
    view, table = view_of({name: KINDS[name]}, {"id": Int64})
    frame = pd.DataFrame({"id": [5], "at": [NOON], name: np.array([value])})
    row = plain_row(view, table, frame, {"other": "name"})
    assert row is not None
    assert row[0] == "5"
    assert shown(decode(encode_row(view.schema, *row)).batch) == by_table(view, table, frame)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"id": [1, 2], "at": [NOON, NOON], "big": [1, 2]}),
        pd.DataFrame({"id": [1], "at": [NOON], "big": [1.5]}),
        pd.DataFrame({"id": [1], "at": [NOON], "big": [True]}),
        pd.DataFrame({"id": [1], "at": [NOON], "big": ["1"]}),
        pd.DataFrame({"id": [1], "at": [NOON], "big": pd.array([None], "Int64")}),
        pd.DataFrame({"id": ["1"], "at": [NOON], "big": [1]}),
        pd.DataFrame({"id": [2**63], "at": [NOON], "big": [1]}),
        pd.DataFrame({"id": [1], "at": ["2024-05-01"], "big": [1]}),
        pd.DataFrame({"id": [1], "at": [pd.NaT], "big": [1]}),
        pd.DataFrame({"id": [1], "at": [NOON]}),
        pd.DataFrame({"at": [NOON], "big": [1]}),
        pd.DataFrame([[1, NOON, 1, 2]], columns=["id", "at", "big", "big"]),
        pd.DataFrame({"id": [1], "at": [NOON], "big": [1], "other": [2]}).set_index("other"),
        pd.DataFrame({"id": [1], "at": [NOON], "big": [1]}).set_index(["id", "at"], drop=False),
    ],
)
def test_what_is_not_plain_is_left_to_tables(frame: pd.DataFrame) -> None:
    view, table = view_of({"big": Int64}, {"id": Int64})
    assert plain_row(view, table, frame, None) is None


def test_views_with_more_than_plain_values_are_left_to_tables() -> None:
    plain = {"id": [1], "at": [NOON], "big": [1], "list": [[1.0]]}
    view, table = view_of({"big": Int64, "list": Array(Float32)}, {"id": Int64})
    assert plain_row(view, table, pd.DataFrame(plain), None) is None
    view, table = view_of({"big": Int64}, {"id": Int64})
    assert plain_row(view, table, pd.DataFrame(plain), None) == (
        "1",
        {view.features["big"].field: 1},
        1714564800 * 10**9,
    )
    assert plain_row(view, table, pd.DataFrame(plain), {"big": "renamed"}) is None
    table.batch_source = None
    assert plain_row(view, table, pd.DataFrame(plain), None) is None
