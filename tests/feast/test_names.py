from __future__ import annotations

import re

import pytest
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from feast_quorin.names import field_name, identifier, is_field_name, project_prefix, schema_name
from quorin.schema import FeatureField, FeatureSchema, dtype, make_schema

HARD = [
    "",
    "_",
    "a",
    "A",
    "a_b",
    "a__b",
    "_a",
    "a_",
    "1a",
    "a-b",
    "a.b",
    "a b",
    "é",
    "名前",
    "entity_id",
    "class",
    "x" * 61,
]


@pytest.mark.parametrize("plain", ["a", "Driver1", "driver_hourly_stats", "entity_id", "x" * 60])
def test_plain_names_stand_for_themselves(plain: str) -> None:
    assert identifier(plain) == plain


@given(st.text(max_size=80) | st.sampled_from(HARD))
def test_every_text_becomes_an_identifier_without_double_underscore(text: str) -> None:
    made = identifier(text)
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", made)
    assert "__" not in made
    assert not made.endswith("_")
    assert len(made) <= 60


@given(st.lists(st.text(max_size=20) | st.sampled_from(HARD), unique=True, max_size=30))
def test_different_texts_become_different_identifiers(texts: list[str]) -> None:
    assert len({identifier(text) for text in texts}) == len(texts)


def test_a_name_that_looks_hashed_is_hashed_again() -> None:
    hashed = identifier("a-b")
    assert identifier(hashed) != hashed


def test_projects_and_views_stay_apart() -> None:
    pairs = [("a", "b__c"), ("a__b", "c"), ("a_", "b"), ("a", "_b"), ("a", "b"), ("a-b", "c"), ("a_b", "c")]
    names = {schema_name(project, view) for project, view in pairs}
    assert len(names) == len(pairs)
    assert schema_name("shop", "user_stats") == "shop__user_stats"
    assert schema_name("shop", "user_stats", version=2) not in {
        schema_name("shop", "user_stats"),
        schema_name("shop", "user_stats_v2"),
    }


def test_a_project_prefix_starts_no_other_project() -> None:
    projects = ["a", "a_", "a__b", "a-b", "ab", "a_b"]
    for project in projects:
        others = [schema_name(other, view) for other in projects if other != project for view in ("v", "_v", "b__v")]
        assert not any(name.startswith(project_prefix(project)) for name in others)


@given(st.lists(st.text(max_size=70) | st.sampled_from(HARD), unique=True, min_size=1, max_size=10))
def test_any_feature_names_make_a_schema(features: list[str]) -> None:
    fields = [FeatureField(field_name(name, "int64"), dtype.int64) for name in features]
    schema = make_schema(schema_name("project-1", "view 2"), fields)
    assert issubclass(schema, FeatureSchema)
    assert len(schema.fields) == len(features)


def test_a_feature_that_changes_its_type_is_another_field() -> None:
    assert field_name("age", "int32") == "age__int32"
    assert field_name("age", "int32") != field_name("age", "int64")


def test_names_of_fields_are_known_from_others() -> None:
    assert all(is_field_name(field_name("a b", kind.name.lower())) for kind in ValueType)
    assert not any(is_field_name(name) for name in ("rides", "a__b", "__", "a__INT64", "int64", "a_int64"))
