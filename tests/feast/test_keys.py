from __future__ import annotations

import pytest
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Int64List, Value
from hypothesis import given
from hypothesis import strategies as st

from feast_quorin.convert.entity_ids import entity_ids, entity_ids_of_rows

TEXTS = st.text(st.sampled_from("ab|\\e0") | st.characters(exclude_categories=["Cs"]), max_size=6)


def key(**values: Value) -> EntityKey:
    return EntityKey(join_keys=list(values), entity_values=list(values.values()))


def one(**values: Value) -> str:
    ids = entity_ids([key(**values)])
    assert ids == entity_ids_of_rows([values])
    return ids[0]


def string(text: str) -> Value:
    return Value(string_val=text)


def test_single_keys_read_as_themselves() -> None:
    assert one(driver=Value(int64_val=1001)) == "1001"
    assert one(driver=Value(int32_val=-7)) == "-7"
    assert one(tail=string("N123AA")) == "N123AA"
    assert one(city=string("Ålesund 名")) == "Ålesund 名"
    assert one(at=Value(unix_timestamp_val=5)) == "5"
    assert one(raw=Value(bytes_val=b"\x00\xff")) == "00ff"
    assert one(flag=Value(bool_val=True)) == "True"
    assert one(id=Value(uuid_val="0f0f")) == "0f0f"


def test_empty_strings_and_the_dummy_entity_have_an_id() -> None:
    assert one(__dummy_id=string("")) == r"\e"
    assert one(a=string(""), b=string("")) == r"\e|\e"
    assert one(raw=Value(bytes_val=b"")) == r"\e"


def test_composite_keys_follow_the_order_of_their_names() -> None:
    city, shop = string("Oslo"), Value(int64_val=7)
    assert one(city=city, shop=shop) == one(shop=shop, city=city) == "Oslo|7"


@given(st.lists(st.tuples(TEXTS, TEXTS), unique=True, max_size=20))
def test_different_composite_keys_have_different_ids(pairs: list[tuple[str, str]]) -> None:
    ids = entity_ids([key(a=string(a), b=string(b)) for a, b in pairs])
    assert len(set(ids)) == len(pairs)


@given(st.lists(TEXTS, unique=True, max_size=20))
def test_different_single_keys_have_different_ids(texts: list[str]) -> None:
    ids = entity_ids([key(a=string(text)) for text in texts])
    assert len(set(ids)) == len(texts)
    assert "" not in ids


@pytest.mark.parametrize("value", [Value(), Value(int64_list_val=Int64List(val=[1]))])
def test_a_null_or_a_list_is_refused_by_name(value: Value) -> None:
    with pytest.raises(ValueError, match="driver"):
        entity_ids([key(driver=value)])


def test_a_key_without_join_keys_is_that_of_no_entity() -> None:
    assert entity_ids([EntityKey()]) == ["\\e"]


def test_a_key_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one value for each join key"):
        entity_ids([EntityKey(join_keys=["driver_id"])])
