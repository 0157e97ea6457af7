"""Schemas and values that several tests share."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis.extra import numpy as hnp

from quorin.schema import FeatureField, FeatureSchema, Schema, dtype, make_schema


class Scalars(FeatureSchema):
    """Four floats: the schema of the headline figures."""

    version = 1
    fields = [FeatureField(name, dtype.float32) for name in "abcd"]


class Everything(FeatureSchema):
    """One field of every kind."""

    version = 1
    fields = [
        FeatureField("f32", dtype.float32),
        FeatureField("f64", dtype.float64, default=-1.5),
        FeatureField("i32", dtype.int32, default=7),
        FeatureField("i64", dtype.int64),
        FeatureField("u8", dtype.uint8),
        FeatureField("flag", dtype.bool),
        FeatureField("text", dtype.string),
        FeatureField("blob", dtype.bytes),
        FeatureField("vector", dtype.float32, (3,)),
        FeatureField("grid", dtype.uint8, (2, 2)),
        FeatureField("flags", dtype.bool, (3,)),
        FeatureField("numbers", dtype.int64, (None,)),
        FeatureField("marks", dtype.bool, (None,)),
        FeatureField("tags", dtype.string, (None,)),
        FeatureField("blobs", dtype.bytes, (None,)),
    ]


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ENTITY_IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=15)

_SCALARS: dict[dtype, st.SearchStrategy[Any]] = {
    dtype.float32: st.floats(width=32),
    dtype.float64: st.floats(),
    dtype.int32: st.integers(-(2**31), 2**31 - 1),
    dtype.int64: st.integers(-(2**63), 2**63 - 1),
    dtype.uint8: st.integers(0, 255),
    dtype.bool: st.booleans(),
    dtype.string: TEXT,
    dtype.bytes: st.binary(max_size=12),
}


def values_of(field: FeatureField, *, nullable: bool = True) -> st.SearchStrategy[Any]:
    """Any value that a field can hold, bit patterns of floats included."""
    if field.shape == ():
        value = _SCALARS[field.dtype]
    elif field.is_list:
        value = st.lists(_SCALARS[field.dtype], max_size=4)
    elif field.dtype.numpy.kind == "f":
        bits = np.dtype(f"u{field.dtype.item_size}")
        value = hnp.arrays(bits, field.shape).map(lambda array: array.view(field.dtype.numpy))
    else:
        value = hnp.arrays(field.dtype.numpy, field.shape)
    return st.none() | value if nullable else value


def rows_of(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({field.name: values_of(field) for field in schema.fields})


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """A random schema of up to eight fields."""
    fields = []
    for index in range(draw(st.integers(1, 8))):
        code = draw(st.sampled_from(list(dtype)))
        shapes = [(), (None,), (3,), (2, 2)] if code.is_numeric else [(), (None,)]
        shape = draw(st.sampled_from(shapes))
        is_fixed_number = code.is_numeric and shape != (None,)
        default = draw(st.none() | st.floats(width=32)) if is_fixed_number else None
        fields.append(FeatureField(f"field_{index}", code, shape, default))
    return make_schema("Random", fields)
