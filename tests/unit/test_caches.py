"""What is computed once for each schema, and kept as long as the schema."""

from __future__ import annotations

import gc
import pickle
import weakref
from threading import Lock

import cloudpickle

from quorin.engine.caches import per_schema
from quorin.schema import FeatureField, Schema, dtype, make_schema


def numbers() -> Schema:
    return make_schema("Numbers", [FeatureField("n", dtype.int64)])


def test_a_function_runs_once_for_each_schema_also_if_it_returns_none() -> None:
    calls: list[Schema] = []
    once = per_schema(calls.append)
    one, other = numbers(), numbers()
    assert [once(one), once(one), once(other), once(one)] == [None] * 4
    assert [each is one for each in calls] == [True, False]


def test_functions_do_not_share_results() -> None:
    schema = numbers()
    name, version = per_schema(lambda each: each.__name__), per_schema(lambda each: each.version)
    assert [name(schema), version(schema), name(schema)] == ["Numbers", 1, "Numbers"]


def test_a_derived_schema_does_not_inherit_results() -> None:
    name = per_schema(lambda each: each.__name__)
    base = numbers()
    assert name(base) == "Numbers"
    assert name(type("Derived", (base,), {"version": 1, "fields": base.fields})) == "Derived"


def test_errors_are_not_kept() -> None:
    results = iter(["first"])
    once = per_schema(lambda _: next(results))
    assert once(numbers()) == "first"
    schema = numbers()
    for _ in range(2):
        try:
            once(schema)
        except StopIteration:
            continue
        raise AssertionError("expected StopIteration")


def test_results_are_freed_with_their_schema() -> None:
    itself = per_schema(lambda each: [each])
    schema = numbers()
    assert itself(schema) == [schema]
    freed = weakref.ref(schema)
    del schema
    gc.collect()
    assert freed() is None


def test_results_are_not_pickled() -> None:
    lock = per_schema(lambda _: Lock())
    schema = numbers()
    kept = lock(schema)
    back = pickle.loads(cloudpickle.dumps(schema))
    assert back == schema
    assert lock(back) is not kept
