"""Tokens: what a write returns, and what a read waits for."""

from __future__ import annotations

import re
from typing import Any

from quorin.errors import TokenError

_PART = re.compile(r"([0-9a-f]{16})-([1-9][0-9]{0,18})")
_FORM = re.compile(rf"q1(?:\.{_PART.pattern}){{0,256}}", re.ASCII)
_MAX_WORD = 2**63 - 1
_MAX_SHOWN = 100


class Token(int):
    """The position of a write, as an integer, and the log that it belongs to.

    ``parts`` are pairs of a log's identity, a random number that it got when it was created, and a position in it:
    reads that ask for the token wait until all of them are applied. A write has one part, a write of no rows none.

    ``text`` is the token for headers and other processes, and :meth:`parse` reads it. A token is no secret, and grants
    nothing.
    """

    parts: tuple[tuple[int, int], ...]

    def __new__(cls, *parts: tuple[int, int]) -> Token:
        """A token of parts; the integer is the highest position, 0 without parts."""
        highest = parts[0][1] if len(parts) == 1 else max((position for _, position in parts), default=0)
        token = int.__new__(cls, highest)
        token.parts = parts
        return token

    def __reduce__(self) -> tuple[type[Token], tuple[tuple[int, int], ...]]:
        return Token, self.parts

    @property
    def text(self) -> str:
        """ASCII letters, digits, dots and hyphens: ``q1.<identity, 16 hex digits>-<position>`` for one part."""
        return ".".join(["q1", *(f"{identity:016x}-{position}" for identity, position in self.parts)])

    @classmethod
    def parse(cls, text: str) -> Token:
        """The token of a text.

        :raises TokenError: for any other text, with the text and what was expected.
        """
        if not isinstance(text, str) or not _FORM.fullmatch(text):
            raise TokenError(f"expected the token of a write, such as q1.00c0ffee00c0ffee-12, got {_shown(text)}")
        parts = {int(identity, 16): int(position) for identity, position in _PART.findall(text)}
        if len(parts) < text.count(".") or not all(0 < word <= _MAX_WORD for part in parts.items() for word in part):
            raise TokenError(f"expected positions and different identities from 1 to 2**63-1, got {_shown(text)}")
        return cls(*parts.items())

    @classmethod
    def of(cls, value: Any) -> Token:
        """A token, or the token of a text.

        :raises TokenError: for anything else, such as a position alone, which does not say of which log.
        """
        return value if isinstance(value, Token) else cls.parse(value)

    @classmethod
    def covering(cls, *tokens: Token) -> Token:
        """The token of several writes: for each log the highest position."""
        parts: dict[int, int] = {}
        for token in tokens:
            for identity, position in token.parts:
                parts[identity] = max(position, parts.get(identity, 0))
        return cls(*parts.items())


def json_of(position: int | Token) -> int | str:
    """A position of one log as its number, of several as the token's text: for JSON."""
    return position.text if isinstance(position, Token) else position


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
