"""Quantities, times and types in words: how errors, checks and commands put them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quorin.engine.format.field import FeatureField

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds_of(text: str) -> float | None:
    """The seconds of a duration such as ``500ms``, ``10m`` or ``1h30m``; None for anything else."""
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        return None
    return sum(float(part[1]) * _UNITS[part[2]] for part in _PART.finditer(text))


def count(number: float) -> str:
    """A number with thousands kept apart."""
    return f"{number:,.0f}"


def counted(number: int, thing: str) -> str:
    """A number of things, with their name in the form that goes with it."""
    many = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{count(number)} {thing if number == 1 else many}"


def size(number: float) -> str:
    """Bytes in the largest unit that leaves a whole number before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(seconds: float | None) -> str:
    """A time in the unit that fits."""
    if seconds is None:
        return "-"
    for factor, unit, limit in ((1e9, "ns", 1e-6), (1e6, "µs", 1e-3), (1e3, "ms", 1.0)):
        if abs(seconds) < limit:
            return f"{seconds * factor:.3g} {unit}"
    for factor, unit, limit in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172_800)):
        if abs(seconds) < limit:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 86_400:,.0f} d"


def ago(seconds: float) -> str:
    """How long ago something was; less than none is the future."""
    return f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"


def moment(time_ns: int | None) -> str:
    """A time in ns since the epoch, in UTC."""
    if time_ns is None:
        return "-"
    try:
        return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(sep=" ", timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"


def type_text(field: FeatureField) -> str:
    """A field's type as people write it, such as ``float32[3]``, or ``float64, last 50`` with a history."""
    shape = "".join("[]" if size is None else f"[{size}]" for size in field.shape)
    return field.dtype.name + shape + ("" if field.history is None else f", last {field.history}")


def field_text(field: FeatureField) -> str:
    """All of a field but its name, such as ``float32[3] (null as 0.0)``."""
    return type_text(field) + ("" if field.default is None else f" (null as {field.default})")


def html_of_fields(caption: str, fields: Iterable[FeatureField]) -> str:
    """A table of fields and their types, as notebooks show it."""
    from html import escape

    cells = "".join(f"<tr><td>{escape(field.name)}</td><td>{escape(field_text(field))}</td></tr>" for field in fields)
    head = "<thead><tr><th>field</th><th>type</th></tr></thead>"
    return f"<table><caption>{escape(caption)}</caption>{head}<tbody>{cells}</tbody></table>"
