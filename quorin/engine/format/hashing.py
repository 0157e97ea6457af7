"""The pinned 64-bit hash of entity ids and names, in plain Python.

This is the definition; the compiled kernel (:mod:`quorin.engine.kernels.hashing`) must agree with it on every input,
and a test holds them together. It is a keyed multiply-fold hash in the manner of wyhash (Wang Yi, public domain): every
product has a secret word in both factors, so that nobody who does not know the seed can choose ids that collide.

``fold(a, b)`` is the exclusive-or of the two halves of the 128-bit product.
"""

from __future__ import annotations

_MASK = 0xFFFFFFFFFFFFFFFF

LENGTH_SECRET = 0xA0761D6478BD642F
"""Added to the length in the last fold, so that an empty tail differs from a tail of zeros."""

DEFAULT_SEED = (0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3)
"""Used for names and for partitions, where all parties must agree. Segments draw a random seed of their own."""


def fold(a: int, b: int) -> int:
    """Multiply two 64-bit words to 128 bits and exclusive-or the halves."""
    product = a * b
    return (product & _MASK) ^ (product >> 64)


def hash_bytes(data: bytes, seed: tuple[int, int] = DEFAULT_SEED) -> int:
    """The 64-bit hash of ``data`` under a seed of two 64-bit words."""
    k0, k1 = seed
    n = len(data)
    h = 0
    start = 0
    while n - start > 16:
        h = fold(_word(data, start, 8) ^ k0 ^ h, _word(data, start + 8, 8) ^ k1)
        start += 16
    low, high = _last_words(data, n)
    h = fold(low ^ k0 ^ h, high ^ k1)
    return fold(h ^ k1, ((n + LENGTH_SECRET) & _MASK) ^ k0)


def _last_words(data: bytes, n: int) -> tuple[int, int]:
    """The last 16 bytes as two words; shorter data as two words that overlap, so that nothing outside is read."""
    if n >= 16:
        return _word(data, n - 16, 8), _word(data, n - 8, 8)
    if n >= 8:
        return _word(data, 0, 8), _word(data, n - 8, 8)
    if n >= 4:
        return _word(data, 0, 4), _word(data, n - 4, 4)
    if n > 0:
        return data[0] | data[n >> 1] << 8 | data[n - 1] << 16, 0
    return 0, 0


def _word(data: bytes, start: int, size: int) -> int:
    return int.from_bytes(data[start : start + size], "little")
