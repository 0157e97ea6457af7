"""A repository behind ``quorin serve``, and stores of other machines that have only its URL and its registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from feast import FeatureStore

from tests.feast.repos import make_store
from tests.support.http import Running, serving


class Served(NamedTuple):
    """``local`` is the store of the machine with the segments, ``server`` serves it."""

    local: FeatureStore
    objects: list[Any]
    server: Running

    def emptied(self) -> None:
        """Remove all rows and apply the objects to an empty registry."""
        self.local.teardown()
        self.local.apply(self.objects)

    def remote(self, folder: Path, data: Path, online_store: dict[str, Any] | None = None, **settings: Any) -> Any:
        """A store of another machine; ``settings`` are other keys of ``feature_store.yaml``."""
        online = {"type": "quorin", "remote": self.server.url, "timeout_ms": 60_000, **(online_store or {})}
        registry = self.local.config.registry.model_dump(exclude_unset=True)
        return make_store(folder, online, data=data, **{"registry": registry, **settings})


@contextmanager
def served(
    folder: Path,
    objects: list[Any],
    *words: str,
    registry: dict[str, Any] | None = None,
    online_store: dict[str, Any] | None = None,
) -> Iterator[Served]:
    """Apply objects, and serve them; ``words`` are further ones of the command, ``online_store`` further settings."""
    repository, segments = folder / "repository", folder / "segments"
    repository.mkdir(parents=True)
    segments.mkdir()
    own = {"type": "quorin", "path": str(folder / "store"), "shm_dir": str(segments), "capacity": 64}
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": {"path": str(repository / "registry.db"), **(registry or {})},
        "online_store": own | (online_store or {}),
        "entity_key_serialization_version": 3,
    }
    (repository / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = FeatureStore(repo_path=str(repository))
    store.apply(objects)
    command = ["quorin", "serve", "-r", str(repository), "-p", "{port}", *words]
    with serving(command, folder / "serve.log") as server:
        yield Served(store, objects, server)
    store.teardown()
    assert list(segments.glob("quorin_*")) == []
