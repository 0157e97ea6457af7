"""What the command ``quorin`` needs of Feast: the store of a repository, and the names that its users know.

Commands must be quick, and Feast takes seconds to import, so this module reads ``feature_store.yaml`` as Feast does
and imports Feast only for :meth:`Repository.skew_sides`, which runs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_quorin.names import FEAST_TYPES, identifier
from quorin.errors import RepositoryError, needs_extra

if TYPE_CHECKING:
    import pyarrow as pa

    from quorin.offline import Sides

__all__ = ["Repository", "find", "identifier", "shown_feature", "shown_view"]

DEFAULT_PATH = "data/quorin"
FILE_VARIABLE = "FEAST_FS_YAML_FILE_PATH"
_STORE_TYPES = ("quorin", "feast_quorin.QuorinOnlineStore", "feast_quorin.online_store.QuorinOnlineStore")
_CREATED = "created_ns"


@dataclass(frozen=True, slots=True)
class Repository:
    """A Feast repository with a store of Quorin's: the engine's connection, and where its data is.

    A directory is absolute. ``shm_dir``, ``shm_group``, ``offline``, ``snapshots`` and ``served_log`` are None if the
    file leaves them out.
    """

    file: Path
    project: str
    connection: str
    shm_dir: str | None
    shm_group: str | None
    offline: str | None
    snapshots: str | None
    served_log: str | None

    def skew_sides(
        self, views: Sequence[str] | None, features: Sequence[str] | None, as_of_time_ns: int | None
    ) -> Iterator[Sides]:
        """What views serve, and Feast's offline store, for ``quorin skew``. Imports Feast.

        :raises RepositoryError: as :func:`feast_quorin.skew`.
        """
        with needs_extra("feast"):
            from feast import FeatureStore

            from feast_quorin.skew_sides import sides_of
        store = FeatureStore(repo_path=str(self.file.parent.absolute()), fs_yaml_file=self.file.absolute())
        yield from sides_of(store, views, features, as_of_time_ns)

    def reference(self, schema_name: str, name: str) -> pa.Table:
        """The rows of a saved dataset as those of the view of a schema, for ``quorin replace --reference``. Imports
        Feast.

        :raises RepositoryError: as :func:`feast_quorin.references.reference_rows`, or if there is no such view.
        """
        with needs_extra("feast"):
            from feast import FeatureStore

            from feast_quorin.names import table_schema_name
            from feast_quorin.references import reference_rows
        store = FeatureStore(repo_path=str(self.file.parent.absolute()), fs_yaml_file=self.file.absolute())
        for table in store.list_all_feature_views():
            if table_schema_name(store.config, table) == schema_name:
                return reference_rows(store.config, store.registry, table, name)
        raise RepositoryError(f"--reference {name}: the registry of {self.file} has no feature view of {schema_name!r}")


def find(directory: Path) -> Repository | None:
    """The repository in a directory, where Feast would look for it; None without a ``feature_store.yaml``.

    :raises RepositoryError: if the file cannot be read, or its online store is another one, or remote.
    """
    file = Path(os.environ.get(FILE_VARIABLE) or directory / "feature_store.yaml")
    if not file.is_file():
        return None
    settings = _settings(file)
    store = settings.get("online_store")
    store = {"type": store} if isinstance(store, str) else store
    if not isinstance(store, dict) or store.get("type") not in _STORE_TYPES:
        kind = store.get("type") if isinstance(store, dict) else store
        raise RepositoryError(f"the online store of {file} is {kind!r}, expected `type: quorin`; or give --connection")
    if store.get("remote") is not None:
        raise RepositoryError(f"the online store of {file} is remote: run the command on a machine with segments")

    def placed(value: Any) -> str | None:
        if value is None or "://" in str(value):
            return None if value is None else str(value)
        return str(file.parent.absolute() / Path(str(value)).expanduser())

    path = str(file.parent.absolute() / Path(str(store.get("path") or DEFAULT_PATH)).expanduser())
    url, shm_dir, group = store.get("redis_url"), store.get("shm_dir"), store.get("shm_group")
    return Repository(
        file,
        str(settings.get("project")),
        path if url is None else str(url),
        None if shm_dir is None else str(Path(str(shm_dir)).absolute()),
        None if group is None else str(group),
        placed(store.get("offline_path")),
        placed(store.get("snapshots")),
        placed(served.get("url") if isinstance(served := store.get("served_log"), dict) else None),
    )


def shown_view(schema_name: str, fields: list[str]) -> str | None:
    """The feature view of a schema with these fields; None if the schema is not Feast's."""
    project, parted, view = schema_name.partition("__")
    is_feast = project and parted and all(name == _CREATED or shown_feature(name) for name in fields)
    return view if is_feast else None


def shown_feature(field: str) -> tuple[str, str] | None:
    """The feature and the Feast type of a field, such as ``("conv_rate", "Float32")``; None if it is not Feast's."""
    feature, parted, kind = field.rpartition("__")
    return (feature, FEAST_TYPES[kind]) if parted and kind in FEAST_TYPES else None


def _settings(file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise RepositoryError(f"{file} cannot be read without Feast: {error}; or give --connection") from error
    try:
        settings = yaml.safe_load(os.path.expandvars(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)  # The text of the error may quote a password.
        reason = type(error).__name__ if mark is None else f"line {mark.line + 1} is not YAML"
        raise RepositoryError(f"{file} cannot be read: {reason}") from error
    if not isinstance(settings, dict):
        raise RepositoryError(f"{file}: expected keys such as project and online_store, got {type(settings).__name__}")
    return settings
