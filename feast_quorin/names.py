"""Names: Feast's projects, views and features as the engine's schemas and fields.

Feast's names may contain hyphens, dots and any script; the engine's are identifiers. :func:`identifier` maps one to the
other injectively: a name that is a simple identifier maps to itself, any other to its legible part and a hash. Neither
form contains ``__``, so it separates the parts of a name unambiguously.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from feast.repo_config import RepoConfig

MAX_PART_CHARS = 60
MAX_VERSIONS = 10_000
FEAST_TYPES = {
    f"{kind}{suffix}": form.format(name)
    for kind, name in {
        "bytes": "Bytes", "string": "String", "int32": "Int32", "int64": "Int64", "double": "Float64",
        "float": "Float32", "bool": "Bool", "unix_timestamp": "UnixTimestamp", "map": "Map", "json": "Json",
        "struct": "Struct", "uuid": "Uuid", "time_uuid": "TimeUuid", "value": "Value", "decimal": "Decimal",
    }.items()
    for suffix, form in {"": "{}", "_list": "Array({})", "_set": "Set({})"}.items()
} | {
    "pdf_bytes": "PdfBytes", "image_bytes": "ImageBytes", "scalar_map": "ScalarMap",
    "zoned_timestamp": "ZonedTimestamp", "unknown": "Invalid", "null": "Null",
}  # fmt: skip
"""Feast's types as its users write them, by the ends of fields' names: Feast's value types in lower case. Kept here, as
importing Feast takes seconds."""
_SIMPLE = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*\Z")
_HASHED = re.compile(r".*_h[0-9a-f]{16}\Z")


def identifier(text: str) -> str:
    """An ASCII identifier of at most 60 characters for any text: injective, without ``__``, legible.

    The same text maps to the same identifier in every process and version.
    """
    if _SIMPLE.match(text) and not _HASHED.match(text) and len(text) <= MAX_PART_CHARS:
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    legible = "_".join(re.findall(r"[A-Za-z0-9]+", text))[: MAX_PART_CHARS - 20].rstrip("_")
    start = legible if legible[:1].isalpha() else f"n_{legible}".rstrip("_")
    return f"{start}_h{digest}"


def project_prefix(project: str) -> str:
    """The prefix of the schema names of a project's views. No other project's schema names have it."""
    return identifier(project) + "__"


@lru_cache(maxsize=4096)
def schema_name(project: str, view: str, version: int | None = None) -> str:
    """The engine's schema name for a feature view, or for one of its versions (1 and up)."""
    return project_prefix(project) + identifier(f"{view}@v{version}" if version else view)


def schema_names(names: Collection[str], project: str, view: str) -> set[str]:
    """The schema names among ``names`` that belong to a view, in any version up to :data:`MAX_VERSIONS`."""
    prefix = project_prefix(project)
    hashed = {name for name in names if name.startswith(prefix) and _HASHED.match(name)}
    versions = {prefix + identifier(f"{view}@v{number}") for number in range(1, MAX_VERSIONS)} if hashed else set()
    return hashed & versions | {schema_name(project, view)}.intersection(names)


def version_of(name: str, project: str, view: str) -> int | None:
    """The version, up to :data:`MAX_VERSIONS`, of a view to which a schema name belongs; None for another view's."""
    prefix = project_prefix(project)
    if name == prefix + identifier(view):
        return 0
    versions = range(1, MAX_VERSIONS) if name.startswith(prefix) and _HASHED.match(name) else ()
    return next((number for number in versions if prefix + identifier(f"{view}@v{number}") == name), None)


def table_schema_name(config: RepoConfig, table: Any) -> str:
    """The schema name for a Feast view object. Versions have names of their own only if the registry enables them.

    Aliases and projections of a view share its rows, because the name is that of ``table.name``.
    """
    version = None
    if config.registry.enable_online_feature_view_versioning:
        version = getattr(table.projection, "version_tag", None)
        if version is None:
            version = getattr(table, "current_version_number", None)
    return schema_name(config.project, table.name, version)


def field_name(feature: str, type_name: str) -> str:
    """The engine's field name for a feature with its Feast type, such as ``conv_rate__float``.

    The type is part of the name, so a feature whose type changes becomes another field: an upgrade or a replay, which
    match fields by name, can never read old bytes as a new type.
    """
    return f"{identifier(feature)}__{type_name}"


def is_field_name(name: str) -> bool:
    """Whether :func:`field_name` may have returned this name."""
    _, parted, kind = name.rpartition("__")
    return bool(parted) and kind in FEAST_TYPES
