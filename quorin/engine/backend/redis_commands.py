"""Commands in Redis' protocol, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


def packed(words: Sequence[str | bytes | int], following: int = 0) -> bytes:
    """A command in Redis' protocol, of these words and a number of ``following`` ones."""
    return b"*%d\r\n%b" % (len(words) + following, b"".join(map(bulk, words)))


@lru_cache(maxsize=1024)
def begun(following: int, *words: str | bytes | int) -> bytes:
    """:func:`packed`, cached for words that repeat."""
    return packed(words, following)


def bulk(word: str | bytes | int) -> bytes:
    """One word of a command."""
    data = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)
