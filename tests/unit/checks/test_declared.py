"""Checks beside a schema: refused where they are wrong, kept as JSON, and no part of the rows."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import pytest

from quorin.engine.checks.declared import KINDS, checks_from_json, checks_from_values, checks_to_json
from quorin.engine.checks.stored import checks_of, store_checks
from quorin.engine.counting.counters import CHECKS
from quorin.errors import SchemaError, SchemaTypeError
from quorin.schema import (
    FeatureField,
    FeatureSchema,
    Freshness,
    MeanDrift,
    NullShare,
    QuantileDrift,
    Range,
    RowCount,
    dtype,
    fingerprint,
    make_schema,
    schema_from_json,
    schema_to_json,
)
from quorin.shm import SegmentRegistry

ALL = (
    RowCount(min_share=0.9, at_most=10),
    NullShare("x", at_most=0.05),
    Range("x", low=-1, high=1, at_most=0.01),
    MeanDrift("x", at_most=0.5),
    QuantileDrift("x", quantiles=(0.1, 0.9), at_most=1),
    Freshness(at_most="1h30m"),
)
FIELDS = [FeatureField("x", dtype.float32), FeatureField("text", dtype.string)]


def test_a_schema_with_checks_is_the_schema_without_them() -> None:
    class Checked(FeatureSchema):
        version = 1
        fields = FIELDS
        checks = list(ALL)

    plain = make_schema("Checked", FIELDS)
    assert Checked.checks == ALL
    assert plain.checks == ()
    assert Checked == plain
    assert fingerprint(Checked) == fingerprint(plain)
    assert schema_to_json(Checked) == schema_to_json(plain)
    assert schema_from_json(schema_to_json(Checked)).checks == ()
    assert pickle.loads(pickle.dumps(make_schema("Checked", FIELDS, checks=ALL))).checks == ALL


def test_json_gives_the_same_checks_back() -> None:
    assert checks_from_json(checks_to_json(ALL)) == ALL
    assert checks_from_values({"checks": json.loads(checks_to_json(ALL))}) == ALL
    assert tuple(KINDS) == CHECKS


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NullShare("x", at_most=1.5), "null_share of 'x': at_most must be a number from 0 to 1, got 1.5"),
        (lambda: NullShare("x", at_most=True), "got True"),
        (lambda: RowCount(), "expected at least one of min_share, max_share, at_least, at_most"),
        (lambda: RowCount(min_share=-1), "from 0, got -1"),
        (lambda: Range("x"), "expected at least one of low, high"),
        (lambda: Range("x", low=2, high=1), "low 2 is above high 1"),
        (lambda: Range("x", low=float("nan")), "got nan"),
        (lambda: MeanDrift("x", at_most=-0.1), "from 0, got -0.1"),
        (lambda: QuantileDrift("x", quantiles=(2,), at_most=1), "from 0 to 1, got 2"),
        (lambda: QuantileDrift("x", quantiles=(), at_most=1), "got ()"),
        (lambda: Freshness(at_most="soon"), "such as '500ms', '2h' or '1h30m', got 'soon'"),
        (lambda: checks_from_values([{"check": "nulls"}]), "expected a check of row_count, null_share"),
        (lambda: checks_from_values([{"check": "range", "field": "x", "lo": 1}]), "unknown 'lo'; expected field, low"),
        (lambda: checks_from_values([{"check": "null_share", "field": "x"}]), "expected at_most too"),
        (lambda: checks_from_values([{"check": "null_share", "field": 3, "at_most": 1}]), "must be a name, got 3"),
        (lambda: checks_from_values("all"), "expected a list of checks, got 'all'"),
        (lambda: checks_from_json("{"), "not JSON"),
        (lambda: make_schema("S", FIELDS, checks=[NullShare("y", at_most=0)]), "no such field; there are x"),
        (
            lambda: make_schema("S", FIELDS, checks=[Range("text", low=0)]),
            "expected a field of numbers, it is of string",
        ),
        (lambda: make_schema("S", FIELDS, checks=["x > 0"]), "checks must hold RowCount, NullShare"),
        (lambda: make_schema("S", FIELDS, checks="x > 0"), "checks must be a list"),
    ],
)
def test_what_is_wrong_is_refused_with_the_value(make: Any, words: str) -> None:
    with pytest.raises((SchemaError, SchemaTypeError), match=re.escape(words)):
        make()


def test_the_control_plane_keeps_the_checks_of_a_class(registry: SegmentRegistry) -> None:
    control = registry.backend.control
    checked = make_schema("Kept", FIELDS, checks=ALL)
    with registry.create(checked, capacity=4) as segment:
        from_json = schema_from_json(control.schemas()["Kept"])
        assert (from_json.checks, checks_of(from_json, control)) == ((), ALL)
        store_checks(control, from_json)  # A class without checks leaves them.
        assert checks_of(from_json, control) == ALL
        fewer = make_schema("Kept", FIELDS, checks=ALL[:1])
        assert checks_of(fewer, control) == ALL[:1]
        registry.create(fewer, capacity=4).close()
        assert checks_of(from_json, control) == ALL[:1]
        control.put_checks("Kept", None)
        assert checks_of(from_json, control) == ()
        control.put_checks("Kept", checks_to_json(ALL))
        assert control.drop_schema("Kept")
        assert control.checks() == {}
        registry.discard(segment)
