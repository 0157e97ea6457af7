"""Quantities, times and types in words."""

from __future__ import annotations

import pytest

from quorin.schema import FeatureField, dtype
from quorin.words import ago, type_text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s ago"), (0, "0 ns ago"), (-90, "in 90 s"), (-1130 * 86_400, "in 1,130 d")]
)
def test_the_future_is_told_as_such(seconds, text):
    assert ago(seconds) == text


def test_types_are_told_as_people_write_them():
    assert type_text(FeatureField("a", dtype.float32)) == "float32"
    assert type_text(FeatureField("a", dtype.float32, (3, 4))) == "float32[3][4]"
    assert type_text(FeatureField("a", dtype.string, (None,))) == "string[]"
