"""Which servers are asked for which partitions."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import given

from quorin.engine.ops.holders import Holder
from quorin.engine.routing.targets import Target, assign, targets_of

holders = st.lists(
    st.builds(
        Holder,
        node=st.sampled_from("abc"),
        urls=st.lists(st.sampled_from(["http://1", "http://2", "http://3"]), unique=True).map(tuple),
        is_ready=st.booleans(),
    ),
    max_size=5,
)


@given(known=holders, avoided=st.sets(st.sampled_from(["http://1", "http://2", "http://3"])))
def test_the_best_servers_of_a_partition_are_chosen(known: list[Holder], avoided: set[str]) -> None:
    chosen = targets_of(known, own_node="a", avoided=avoided)
    others = [(holder, url) for holder in known if holder.node != "a" for url in holder.urls]
    assert bool(chosen) == bool(others)
    if chosen:
        ranks = {(url in avoided, not holder.is_ready) for holder, url in others}
        best = {Target(url, h.node) for h, url in others if (url in avoided, not h.is_ready) == min(ranks)}
        assert chosen == best


targets = st.builds(Target, url=st.sampled_from(["http://1", "http://2", "http://3", "http://4"]), node=st.just("n"))


@given(choices=st.dictionaries(st.integers(0, 15), st.frozensets(targets, max_size=3)), seed=st.integers())
def test_every_partition_with_a_server_is_asked_for_once(choices: dict[int, frozenset[Target]], seed: int) -> None:
    assigned = assign(choices, random.Random(seed))
    asked = sorted(partition for own in assigned.values() for partition in own)
    assert asked == sorted(partition for partition, own in choices.items() if own)
    assert all(target in choices[partition] for target, own in assigned.items() for partition in own)


def test_one_server_that_has_all_is_asked_for_all() -> None:
    one, other, whole = (Target(f"http://{name}", name) for name in ("one", "other", "whole"))
    choices = {0: frozenset({one, whole}), 1: frozenset({one, whole}), 2: frozenset({other, whole})}
    assert {tuple(assign(choices, random.Random(seed))) for seed in range(8)} == {(whole,)}


def test_servers_that_have_the_same_are_asked_in_turn() -> None:
    choices = {0: frozenset({Target("http://1", "a"), Target("http://2", "b")})}
    asked = {target for seed in range(32) for target in assign(choices, random.Random(seed))}
    assert len(asked) == 2
