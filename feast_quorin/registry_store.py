"""The registry's file, whose views are built anew only when it has changed:
``registry: {path: data/registry.db, registry_store_type: feast_quorin.QuorinRegistryStore}``, optional.

At every push Feast reads its registry without a cache, to look for feature services to precompute. That gives a new
registry, so the next push builds the objects of all views again: a millisecond and more for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feast.infra.registry.file import FileRegistryStore

if TYPE_CHECKING:
    from pathlib import Path

    from feast.protos.feast.core.Registry_pb2 import Registry
    from feast.repo_config import RegistryConfig


class QuorinRegistryStore(FileRegistryStore):
    """Feast's own registry in a file, which stays one object for as long as the file says the same.

    Feast then keeps the views that it built, and hands them to all who ask, as with ``allow_registry_cache=True``: copy
    one before you change it. A change that is applied, by this process or another, is seen by the next read.
    """

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        super().__init__(registry_config, repo_path)
        self._last: Registry | None = None

    def get_registry_proto(self) -> Registry:
        """The registry in the file. :raises FileNotFoundError: if there is none yet."""
        registry = super().get_registry_proto()
        # Feast changes in place the one that it got last; then it differs from the file, unless it was written.
        if self._last is None or registry != self._last:
            self._last = registry
        return self._last
