"""The cache of the plugin keeps a bounded number of entries."""

from __future__ import annotations

from feast_quorin.cache import BoundedCache


def test_a_new_key_empties_a_full_cache():
    cache: BoundedCache[int, str] = BoundedCache(2)
    cache[1], cache[2] = "a", "b"
    assert cache == {1: "a", 2: "b"}
    cache[3] = "c"
    assert cache == {3: "c"}


def test_a_known_key_is_replaced_in_a_full_cache():
    cache: BoundedCache[int, str] = BoundedCache(2)
    cache[1], cache[2] = "a", "b"
    cache[2] = "c"
    assert cache == {1: "a", 2: "c"}
