"""Quantities, times and types in words."""

from __future__ import annotations

import pytest

from quorin.engine.words import ago, counted, type_text
from quorin.schema import FeatureField, dtype


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s ago"), (0, "0 ns ago"), (-90, "in 90 s"), (-1130 * 86_400, "in 1,130 d")]
)
def test_the_future_is_told_as_such(seconds, text):
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("number", "thing", "text"),
    [(1, "file", "1 file"), (0, "file", "0 files"), (1, "log entry", "1 log entry"), (1500, "entry", "1,500 entries")],
)
def test_one_thing_is_not_many(number, thing, text):
    assert counted(number, thing) == text


def test_types_are_told_as_people_write_them():
    assert type_text(FeatureField("a", dtype.float32)) == "float32"
    assert type_text(FeatureField("a", dtype.float32, history=50)) == "float32, last 50"
    assert type_text(FeatureField("a", dtype.float32, (3, 4))) == "float32[3][4]"
    assert type_text(FeatureField("a", dtype.string, (None,))) == "string[]"
