"""Names: Feast's projects, views and features as the engine's schemas and fields.

Feast's names may hold hyphens, dots, any script; the engine's are identifiers. :func:`identifier` maps one to the
other so that different names stay different: a plain name stands for itself, any other gets its legible part and a
hash. Neither form contains ``__``, which therefore separates parts without doubt.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from feast.value_type import ValueType

if TYPE_CHECKING:
    from collections.abc import Collection

    from feast.repo_config import RepoConfig

MAX_PART_CHARS = 60
MOST_VERSIONS = 10_000
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*\Z")
_HASHED = re.compile(r".*_h[0-9a-f]{16}\Z")


def identifier(text: str) -> str:
    """An ASCII identifier of at most 60 characters for any text: injective, without ``__``, legible.

    The same text always gives the same identifier, in every process and version.
    """
    if _PLAIN.match(text) and not _HASHED.match(text) and len(text) <= MAX_PART_CHARS:
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    legible = "_".join(re.findall(r"[A-Za-z0-9]+", text))[: MAX_PART_CHARS - 20].rstrip("_")
    start = legible if legible[:1].isalpha() else f"n_{legible}".rstrip("_")
    return f"{start}_h{digest}"


def project_prefix(project: str) -> str:
    """What the schema names of all views of a project start with, and those of no other project."""
    return identifier(project) + "__"


@lru_cache(maxsize=4096)
def schema_name(project: str, view: str, version: int | None = None) -> str:
    """The engine's schema name of a feature view, or of one of its versions from 1 up."""
    return project_prefix(project) + identifier(f"{view}@v{version}" if version else view)


def schema_names(known: Collection[str], project: str, view: str) -> set[str]:
    """Those of the known schema names that are of this view, in whichever version up to :data:`MOST_VERSIONS`."""
    prefix = project_prefix(project)
    hashed = {name for name in known if name.startswith(prefix) and _HASHED.match(name)}
    versions = {prefix + identifier(f"{view}@v{number}") for number in range(1, MOST_VERSIONS)} if hashed else set()
    return hashed & versions | {schema_name(project, view)}.intersection(known)


def table_schema_name(config: RepoConfig, table: Any) -> str:
    """The schema name for a Feast view object; versions count only where the registry has them switched on.

    Storage goes by ``table.name``: aliases and projections of one view share its rows.
    """
    version = None
    if config.registry.enable_online_feature_view_versioning:
        version = getattr(table.projection, "version_tag", None)
        if version is None:
            version = getattr(table, "current_version_number", None)
    return schema_name(config.project, table.name, version)


def field_name(feature: str, type_name: str) -> str:
    """The engine's field name of a feature with its Feast type, such as ``conv_rate__float``.

    The type is part of the name, so that a feature that changes its type is another field: whatever is carried over or
    replayed by name can never show old bytes under a new type.
    """
    return f"{identifier(feature)}__{type_name}"


def is_field_name(name: str) -> bool:
    """Whether :func:`field_name` may have given this name."""
    _, parted, kind = name.rpartition("__")
    return bool(parted) and kind.upper() in ValueType.__members__ and kind.islower()
