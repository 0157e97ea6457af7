"""What requests of one kind are answered with: their views, and which field of a schema each feature is.

A record in a ring has only the number of its description, a hash of the text. The text is in a file beside the ring
file, which a process writes before its first record, and goes into every Parquet file with such records.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from quorin.errors import CorruptHistoryError
from quorin.schema import FeatureField, Schema, make_schema, schema_from_json, schema_to_json

FORMAT = 1


@dataclass(frozen=True)
class ServedView:
    """One view of a request: its name, the schema that it is stored by, and its features as pairs of their name in the
    answer and the schema's field. Views with equal ``group`` are read by the same entity ids. ``ages`` has the age
    limit of each feature in ns, 0 for none; older values were served as null.
    """

    name: str
    schema: str
    features: tuple[tuple[str, FeatureField], ...]
    group: int = 0
    tie_breaker: str | None = None
    ages: tuple[int, ...] = ()

    @property
    def fields(self) -> Schema:
        """A schema of the fields."""
        return make_schema(self.schema, list({field.name: field for _, field in self.features}.values()))


@dataclass(frozen=True)
class Description:
    """The views of a request, in their order."""

    views: tuple[ServedView, ...]

    def to_json(self) -> str:
        """The text, the same in every process."""
        return json.dumps({"format": FORMAT, "views": [_view_json(view) for view in self.views]}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Description:
        """:raises CorruptHistoryError: for a text that is no description."""
        try:
            described = json.loads(text)
            if described["format"] != FORMAT:
                raise CorruptHistoryError(f"served log: format {described['format']!r} is not known, expected {FORMAT}")
            return cls(tuple(map(_view_of, described["views"])))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptHistoryError(f"served log: {text[:80]!r} describes no request: {error!r}") from error


def number_of(text: str) -> int:
    """The number of a description: 63 bits of a hash."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keep(ring_path: Path, text: str) -> int:
    """Store a description beside the ring file, whole or not at all; returns its number.

    :raises OSError: if that fails.
    """
    number = number_of(text)
    path = _path(ring_path, number)
    if not path.exists():
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.pending")
        try:
            aside.touch(mode=0o600, exist_ok=False)
            aside.write_text(text)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return number


def kept(ring_path: Path, number: int) -> str | None:
    """The text of a description; None if its file is gone or damaged."""
    try:
        text = _path(ring_path, number).read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text if number_of(text) == number else None


def _path(ring_path: Path, number: int) -> Path:
    return ring_path.with_name(f"{ring_path.name}.{number:016x}.json")


def _view_json(view: ServedView) -> dict[str, Any]:
    return {
        "name": view.name,
        "schema": json.loads(schema_to_json(view.fields)),
        "features": [[name, field.name] for name, field in view.features],
        "group": view.group,
        "tie_breaker": view.tie_breaker,
        "ages": list(view.ages) if any(view.ages) else [],
    }


def _view_of(described: Any) -> ServedView:
    schema = schema_from_json(json.dumps(described["schema"]))
    fields = {field.name: field for field in schema.fields}
    features = tuple((str(name), fields[field]) for name, field in described["features"])
    ages = tuple(int(age) for age in described["ages"])
    return ServedView(described["name"], schema.__name__, features, described["group"], described["tie_breaker"], ages)
