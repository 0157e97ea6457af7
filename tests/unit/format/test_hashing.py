from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from quorin.engine.format.hashing import DEFAULT_SEED, hash_bytes
from quorin.engine.kernels.compiling import kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import text_address

WORDS = st.integers(0, 2**64 - 1)
ASCII = st.text(st.characters(max_codepoint=127), max_size=80)


@kernel
def hash_text(text, k0, k1):
    return hash_id(text_address(text), text._length, k0, k1)


@settings(deadline=None)  # the first example compiles
@given(ASCII, WORDS, WORDS)
def test_the_compiled_hash_equals_the_definition(text: str, k0: int, k1: int) -> None:
    assert hash_text(text, np.uint64(k0), np.uint64(k1)) == hash_bytes(text.encode(), (k0, k1))


def test_the_hash_is_pinned() -> None:
    """Partitions and name tables outlive a process: these numbers never change."""
    assert [hash_bytes(b"x" * n) for n in (0, 1, 3, 4, 8, 15, 16, 17, 33)] == PINNED


def test_every_length_and_seed_gives_another_hash() -> None:
    assert len({hash_bytes(bytes(n)) for n in range(200)}) == 200
    k0, k1 = DEFAULT_SEED
    assert len({hash_bytes(b"id", (k0 ^ i, k1)) for i in range(100)}) == 100


def test_ids_spread_evenly_over_slots() -> None:
    slots = 64
    counts = [0] * slots
    for i in range(64_000):
        counts[hash_bytes(b"user_%d" % i) * slots >> 64] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


PINNED = [
    0xBE2173B09FE8B24D,
    0x2AB07F59FE29A871,
    0x9F0E6DE02339AD85,
    0x61F89EE4C5D6115C,
    0x66A660B9B53818B5,
    0xEC07BCE31BDA420F,
    0x80F8EC4905DFBF52,
    0x981BA30CE708926F,
    0x3F6A61495E34FC7A,
]
