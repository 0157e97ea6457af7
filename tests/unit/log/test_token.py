"""Tokens: an integer position that knows its log, as text and back, and nothing else taken for one."""

from __future__ import annotations

import json
import pickle
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorin.engine.log.token import Token
from quorin.errors import TokenError

WORDS = st.integers(1, 2**63 - 1)
PARTS = st.dictionaries(WORDS, WORDS, max_size=5)


@given(PARTS)
def test_a_token_is_the_same_after_a_trip_as_text_and_by_pickle(parts: dict[int, int]) -> None:
    token = Token(*parts.items())
    assert token == max(parts.values(), default=0)
    for again in (Token.parse(token.text), pickle.loads(pickle.dumps(token)), Token.of(token), Token.of(token.text)):
        assert again == token
        assert again.parts == token.parts
    assert Token.parse(token.text).text == token.text


def test_a_token_is_an_integer_wherever_a_position_is_expected() -> None:
    token = Token((7, 1 << 40))
    assert f"{token} {token:,} {[token]}" == "1099511627776 1,099,511,627,776 [1099511627776]"
    assert json.dumps(token) == "1099511627776" == orjson.dumps(token).decode()
    assert token + 1 == (1 << 40) + 1
    assert token.text == "q1.0000000000000007-1099511627776"


@pytest.mark.parametrize(
    "text",
    [
        "", "q", "q2.0000000000000007-5", "q1.", "q1.0000000000000007-5 ", " q1", "q1\n", "q1.0000000000000007-5\n",
        "q1.7-5", "q1.0000000000000007-05", "q1.0000000000000007-0", "q1.0000000000000007--5", "Q1.0000000000000007-5",
        "q1.000000000000000A-5", "q1.0000000000000007-५", "q1.0000000000000007-9223372036854775808",
        "q1.8000000000000000-5", "q1.0000000000000000-5", "q1.0000000000000007-5.0000000000000007-6",
        "q1" + 257 * ".0000000000000007-5", "5", "x" * 10_000,
    ],
)  # fmt: skip
def test_no_other_text_is_a_token(text: str) -> None:
    with pytest.raises(TokenError, match=r"expected .*, got") as caught:
        Token.parse(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [5, 0, True, None, b"q1", 1.5, ("q1",)])
def test_a_position_alone_is_no_token(value: Any) -> None:
    with pytest.raises(TokenError, match="expected the token of a write"):
        Token.of(value)


def test_a_token_of_several_writes_has_the_highest_position_of_each_log() -> None:
    covering = Token.covering(Token((1, 5)), Token(), Token((2, 3)), Token((1, 4)))
    assert dict(covering.parts) == {1: 5, 2: 3}
    assert Token.covering().parts == ()
