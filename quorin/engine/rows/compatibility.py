"""Which schemas can follow each other: what an upgrade may change, and what a reader of an older version still gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.schema import FeatureField, dtype, is_other_entity

if TYPE_CHECKING:
    from quorin.schema import Schema

WIDENINGS = frozenset(
    {
        (dtype.uint8, dtype.int32),
        (dtype.uint8, dtype.int64),
        (dtype.uint8, dtype.float32),
        (dtype.uint8, dtype.float64),
        (dtype.int32, dtype.int64),
        (dtype.int32, dtype.float64),
        (dtype.float32, dtype.float64),
    }
)
"""Pairs of types where every value of the first is exactly a value of the second."""


def can_upgrade(old: Schema, new: Schema) -> tuple[bool, list[str]]:
    """Whether rows of ``old`` can become rows of ``new`` without loss, and, if not, every reason, naming the fields.

    Fields match by name, whatever their order. New ones read as null, which in a vector is their default; types may
    widen (``WIDENINGS``, also inside shapes and lists); fields may be dropped; defaults may change. A history may
    be added, and then begins empty, grow, and be removed, but not shrink. The version must grow. ``entity`` must stay
    the same once it is set.
    """
    reasons = []
    if old.__name__ != new.__name__:
        reasons.append(f"the schemas have different names: {old.__name__!r} and {new.__name__!r}")
    if new.version <= old.version:
        reasons.append(f"the version must grow: it is {old.version}, and {new.version} was to follow")
    if is_other_entity(old, new):
        reasons.append(f"the ids would name another entity: {new.entity!r} instead of {old.entity!r}")
    new_fields = {field.name: field for field in new.fields}
    kept = [(field, new_fields[field.name]) for field in old.fields if field.name in new_fields]
    reasons += [reason for pair in kept if (reason := _obstacle(*pair))]
    reasons += [
        f"field {old_field.name!r} would keep the last {new_field.history} values instead of {old_field.history}"
        for old_field, new_field in kept
        if old_field.history and new_field.history and new_field.history < old_field.history
    ]
    return not reasons, reasons


def fits(stored: FeatureField, requested: FeatureField) -> bool:
    """Whether a stored field can serve a reader that requests the field of that name in an older version."""
    return _obstacle(requested, stored) is None


def _obstacle(old: FeatureField, new: FeatureField) -> str | None:
    if old.shape != new.shape:
        return f"field {old.name!r} would change its shape from {old.shape} to {new.shape}"
    if old.dtype is new.dtype or (old.dtype, new.dtype) in WIDENINGS:
        return None
    if (new.dtype, old.dtype) in WIDENINGS:
        return f"field {old.name!r} would narrow from {old.dtype.name} to {new.dtype.name}"
    return f"field {old.name!r} would change from {old.dtype.name} to {new.dtype.name}, which does not hold its values"
