"""The cache of the plugin keeps a bounded number of entries."""

from __future__ import annotations

import weakref

from feast_quorin.cache import BoundedCache, IdleCache
from tests.support.world import until


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


class Thing:
    """Something that is noticed when it goes."""


def test_what_is_idle_goes_and_what_is_used_stays():
    cache: IdleCache[str, Thing] = IdleCache(2, idle_seconds=0.05)
    made: list[weakref.ref[Thing]] = []

    def make(_: str) -> Thing:
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    first = cache.get("a", lambda _: True, make)
    assert cache.get("a", lambda _: True, make) is first
    assert cache.get("a", lambda _: False, make) is not first
    held = made[0]
    del first
    assert held() is None
    until(lambda: made[1]() is None)
    # Its thread ended with its last entry, and begins anew.
    cache.get("b", lambda _: True, make)
    until(lambda: made[2]() is None)


def test_the_one_that_was_used_last_stays_in_a_full_idle_cache():
    cache: IdleCache[str, Thing] = IdleCache(2, idle_seconds=3600)
    things = {name: weakref.ref(cache.get(name, lambda _: True, lambda _: Thing())) for name in "ab"}
    cache.get("a", lambda _: True, lambda _: Thing())
    cache.get("c", lambda _: True, lambda _: Thing())
    assert things["b"]() is None
    assert things["a"]() is not None
    cache.drop_idle(0)
    assert things["a"]() is None


def test_what_a_cache_that_nobody_has_kept_goes_with_it():
    cache: IdleCache[str, Thing] = IdleCache(2, idle_seconds=3600)
    thing = weakref.ref(cache.get("a", lambda _: True, lambda _: Thing()))
    assert thing() is not None
    del cache
    until(lambda: thing() is None)  # Its thread may be looking.
