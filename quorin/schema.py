"""Feature schemas: what a row holds, checked when the class is defined.

A schema is a class, so that it has a name, a docstring and an import path::

    class UserFeatures(FeatureSchema):
        version = 1
        fields = [FeatureField("age", dtype.float32), FeatureField("embedding", dtype.float32, shape=(128,))]

Only the standard library and NumPy are imported here.
"""

from __future__ import annotations

import copyreg
import json
import keyword
import re
import sys
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from quorin.engine.caches import per_schema
from quorin.engine.checks.declared import (
    Check,
    Freshness,
    MeanDrift,
    NullShare,
    QuantileDrift,
    Range,
    RowCount,
    check_checks,
    checks_from_values,
    checks_to_json,
)
from quorin.engine.format.field import MAX_NAME_BYTES, RESERVED_FIELD_NAMES, FeatureField, dtype
from quorin.engine.format.hashing import hash_bytes
from quorin.engine.words import html_of_fields
from quorin.errors import SchemaError, SchemaTypeError

if TYPE_CHECKING:
    import pyarrow as pa

    from quorin.engine.arrays import AnyArray

__all__ = [
    "MAX_FIELDS",
    "OFFSET_TABLE_DTYPE",
    "Check",
    "FeatureField",
    "FeatureSchema",
    "Freshness",
    "MeanDrift",
    "NullShare",
    "QuantileDrift",
    "Range",
    "RowCount",
    "Schema",
    "SchemaType",
    "check_checks",
    "checks_from_values",
    "checks_to_json",
    "compile_schema",
    "dtype",
    "fingerprint",
    "is_other_entity",
    "make_schema",
    "schema_from_arrow",
    "schema_from_json",
    "schema_to_arrow",
    "schema_to_json",
    "total_element_count",
]

Schema = type["FeatureSchema"]

MAX_FIELDS = 4096
SCHEMA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class SchemaType(type):
    """The class of schemas: checks them when they are defined, and compares them by name, version and fields."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, bases, namespace, **kwargs)
        # cloudpickle makes a bare class first, with no more than its module, and then sets what a whole one had.
        if bases and namespace.keys() - {"__module__"}:
            schema = cast("Schema", cls)
            _check_schema(schema)
            schema.fields = tuple(schema.fields)
            schema.checks = check_checks(name, schema.checks, schema.fields)

    def __eq__(cls, other: object) -> bool:
        if cls is other:
            return True
        if not (isinstance(other, SchemaType) and _is_whole(cls) and _is_whole(other)):
            return NotImplemented
        return schema_to_json(cast("Schema", cls)) == schema_to_json(cast("Schema", other))

    def __hash__(cls) -> int:
        return hash(cls.__name__)

    def _repr_html_(cls) -> str | None:
        """What notebooks show of a schema: a table of its fields."""
        schema = cast("Schema", cls)
        return html_of_fields(f"{cls.__name__} version {schema.version}", schema.fields) if _is_whole(cls) else None


def _is_whole(schema: SchemaType) -> bool:
    """False for the base of all schemas, and while a class is being unpickled."""
    return {"version", "fields"} <= schema.__dict__.keys()


def _reduced(schema: Schema) -> str | tuple[Any, ...]:
    """How pickle keeps a schema: by its name where an import finds it, else as its JSON."""
    found: Any = sys.modules.get(schema.__module__)
    for name in schema.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is schema and schema.__module__ != "__main__":
        return str(schema.__qualname__)
    return _unpickled, (schema_to_json(schema), tuple(schema.checks))


def _unpickled(text: str, checks: tuple[Check, ...]) -> Schema:
    schema = schema_from_json(text)
    schema.checks = checks
    return schema


copyreg.pickle(SchemaType, _reduced)  # type: ignore[arg-type]


class FeatureSchema(metaclass=SchemaType):
    """Base of all schemas: subclass it with ``version`` and ``fields``.

    Schemas of the same name, version, fields, ``tie_breaker`` and ``entity`` are equal, whichever process made them.
    They are pickled by name where they can be imported, else as JSON; cloudpickle takes those of a notebook or a script
    with all that their class holds.

    ``tie_breaker`` may name an int64 scalar field that decides between rows of one entity and one event time: the
    larger value wins, then the later write. A null counts as the smallest, and so does a deletion, which has none.

    ``entity`` may say what the ids name, in any words, such as ``"driver_id"``. No upgrade leads to a schema of another
    entity, whose ids would find the rows of this one.

    ``checks`` say what a new generation must hold before it replaces the one that is served. They are no part of the
    rows: schemas that differ in their checks alone are equal.

    :raises SchemaError: when the class is defined with a bad name, ``version``, ``fields``, ``tie_breaker``,
        ``entity`` or ``checks``.
    """

    version: ClassVar[int]
    fields: ClassVar[list[FeatureField] | tuple[FeatureField, ...]]
    tie_breaker: ClassVar[str | None] = None
    entity: ClassVar[str | None] = None
    checks: ClassVar[list[Check] | tuple[Check, ...]] = ()

    def __init__(self) -> None:
        raise SchemaTypeError(f"{type(self).__name__} is a schema: use the class itself, it has no instances")


OFFSET_TABLE_DTYPE = np.dtype(
    [
        ("name_hash", "<u8"),
        ("index", "<i4"),
        ("dtype", "<i4"),
        ("element_offset", "<i8"),
        ("element_count", "<i8"),
        ("byte_count", "<i8"),
    ]
)
"""One row a field: the offset of its elements in the assembled vector (-1 for variable-size fields)."""


def compile_schema(schema: Schema) -> AnyArray:
    """The offset table of a schema: structured array of shape ``(fields,)``, sorted by name hash."""
    table = np.zeros(len(schema.fields), OFFSET_TABLE_DTYPE)
    element_offset = 0
    for index, field in enumerate(schema.fields):
        offset = -1 if field.is_variable else element_offset
        table[index] = (_name_hash(field.name), index, field.dtype, offset, field.element_count, field.byte_count)
        element_offset += field.element_count
    return np.sort(table, order="name_hash")


def total_element_count(schema: Schema) -> int:
    """Length of the assembled float32 vector: numeric fixed-size fields, in declaration order, row-major."""
    return sum(field.element_count for field in schema.fields)


@per_schema
def fingerprint(schema: Schema) -> int:
    """A 64-bit number that two schemas share only if name, version and every field agree."""
    return hash_bytes(schema_to_json(schema).encode())


def is_other_entity(one: Schema, other: Schema) -> bool:
    """Whether ids of the two schemas name different things, as far as both say what."""
    return None not in (one.entity, other.entity) and one.entity != other.entity


@per_schema
def schema_to_json(schema: Schema) -> str:
    """The schema as canonical JSON: equal schemas have equal text."""
    parts: dict[str, Any] = {
        "name": schema.__name__,
        "version": schema.version,
        "fields": [
            {"name": f.name, "dtype": f.dtype.name, "shape": list(f.shape), "default": f.default}
            | ({} if f.history is None else {"history": f.history})
            for f in schema.fields
        ],
    }
    if schema.tie_breaker is not None:
        parts["tie_breaker"] = schema.tie_breaker
    if schema.entity is not None:
        parts["entity"] = schema.entity
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=False)


def schema_from_json(text: str) -> Schema:
    """The schema that :func:`schema_to_json` wrote, as a new class.

    :raises SchemaError: for text that is not such JSON, or describes no valid schema.
    """
    try:
        parts = json.loads(text)
        fields = [
            FeatureField(f["name"], dtype[f["dtype"]], tuple(f["shape"]), f["default"], f.get("history"))
            for f in parts["fields"]
        ]
        name, version = parts["name"], parts["version"]
        tie_breaker, entity = parts.get("tie_breaker"), parts.get("entity")
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"not a schema in JSON ({error!r}): {text[:200]!r}") from error
    return make_schema(name, fields, version=version, tie_breaker=tie_breaker, entity=entity)


def make_schema(
    name: str,
    fields: list[FeatureField] | tuple[FeatureField, ...],
    *,
    version: int = 1,
    tie_breaker: str | None = None,
    entity: str | None = None,
    checks: list[Check] | tuple[Check, ...] = (),
) -> Schema:
    """A schema class built at run time; it is held to the same rules as a class statement."""
    _check_schema_name(name)
    members = {"version": version, "fields": fields, "tie_breaker": tie_breaker, "entity": entity, "checks": checks}
    return SchemaType(name, (FeatureSchema,), members)  # type: ignore[return-value]


def schema_to_arrow(schema: Schema) -> pa.Schema:
    """The Arrow schema of a schema's fields, all nullable. Multi-dimensional shapes are nested fixed-size lists."""
    import pyarrow as pa

    def arrow_type(field: FeatureField) -> pa.DataType:
        element = pa.bool_() if field.dtype is dtype.bool else pa.from_numpy_dtype(field.dtype.numpy)
        if field.dtype is dtype.string:
            element = pa.string()
        elif field.dtype is dtype.bytes:
            element = pa.binary()
        if field.is_list:
            return pa.list_(element)
        for size in reversed(field.shape):
            element = pa.list_(element, size)
        return element

    return pa.schema([pa.field(field.name, arrow_type(field)) for field in schema.fields])


def schema_from_arrow(name: str, arrow_schema: pa.Schema, *, version: int = 1) -> Schema:
    """A schema with a field for each Arrow column, ``entity_id`` and ``event_time_ns`` left out.

    :raises SchemaError: for a column whose Arrow type no field can hold; the text names it.
    """
    import pyarrow as pa

    scalars = {arrow: code for code, arrow in zip(dtype, map(_scalar_arrow_type, dtype), strict=True)}
    scalars |= {pa.large_string(): dtype.string, pa.large_binary(): dtype.bytes}

    def field_of(column: pa.Field) -> FeatureField:
        shape: list[int | None] = []
        inner = column.type
        while pa.types.is_fixed_size_list(inner):
            shape.append(inner.list_size)
            inner = inner.value_type
        if not shape and (pa.types.is_list(inner) or pa.types.is_large_list(inner)):
            shape, inner = [None], inner.value_type
        if inner not in scalars:
            raise SchemaError(f"column {column.name!r}: no field can hold the Arrow type {column.type}")
        return FeatureField(column.name, scalars[inner], tuple(shape))

    skipped = RESERVED_FIELD_NAMES
    return make_schema(name, [field_of(c) for c in arrow_schema if c.name not in skipped], version=version)


def _check_schema_name(name: object) -> None:
    """Refuse a schema name that cannot be part of a file name or a key."""
    if not isinstance(name, str):
        raise SchemaTypeError(f"a schema name must be a str, got {name!r}")
    if not SCHEMA_NAME.match(name) or len(name) > MAX_NAME_BYTES or keyword.iskeyword(name):
        raise SchemaError(
            f"schema name {name!r}: expected ASCII letters, digits and '_', no leading digit, at most {MAX_NAME_BYTES}"
        )


def _scalar_arrow_type(code: dtype) -> pa.DataType:
    return schema_to_arrow(make_schema("Scalar", [FeatureField("value", code)])).field(0).type


def _name_hash(name: str) -> int:
    return hash_bytes(name.encode())


def _check_schema(cls: Schema) -> None:
    name = cls.__name__
    _check_schema_name(name)
    version = cls.__dict__.get("version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise SchemaError(f"schema {name!r}: version must be an int from 1, got {version!r}")
    if not 1 <= version <= 0xFFFFFFFF:
        raise SchemaError(f"schema {name!r}: version must be from 1 to 4294967295, got {version}")
    fields = cls.__dict__.get("fields")
    if not isinstance(fields, (list, tuple)) or not fields:
        raise SchemaError(f"schema {name!r}: fields must be a non-empty list of FeatureField, got {fields!r}")
    if len(fields) > MAX_FIELDS:
        raise SchemaError(f"schema {name!r}: {len(fields)} fields, at most {MAX_FIELDS}")
    seen: set[str] = set()
    for field in fields:
        if not isinstance(field, FeatureField):
            raise SchemaTypeError(f"schema {name!r}: fields must hold FeatureField, got {field!r}")
        if field.name in seen:
            raise SchemaError(f"schema {name!r}: field {field.name!r} is defined twice")
        seen.add(field.name)
    # The tie-breaker decides which row a value of a history comes from, so it has none itself.
    able = [f.name for f in fields if f.dtype is dtype.int64 and f.shape == () and f.history is None]
    if cls.tie_breaker is not None and cls.tie_breaker not in able:
        raise SchemaError(f"schema {name!r}: tie_breaker {cls.tie_breaker!r} is none of its int64 scalars, {able}")
    if cls.entity is not None and (not isinstance(cls.entity, str) or not cls.entity):
        raise SchemaError(f"schema {name!r}: entity must be a text that says what the ids name, got {cls.entity!r}")
