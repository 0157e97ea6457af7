"""Feature services by name. Feast makes one from protobuf for each request, which takes milliseconds."""

from __future__ import annotations

from typing import Any, NamedTuple

from feast_quorin.cache import BoundedCache
from feast_quorin.read.freshness import RegistryState, can_tell_changes, current_state

_MAX_SERVICES = 256


class Services:
    """The feature services of one store, each kept while the registry stays the same. Threads may share them."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._services: BoundedCache[str, _Service] = BoundedCache(_MAX_SERVICES)

    def get(self, name: str) -> Any:
        """The service with this name.

        :raises FeatureServiceNotFoundException: if the registry has none.
        """
        registry = self._store.registry
        cached = self._services.get(name)
        if cached is not None and cached.state.holds(registry):
            return cached.service
        if not can_tell_changes(registry):
            return self._read(name)
        state = current_state(registry, self._store.project)
        service = cached.service if cached is not None and cached.state.is_same(state) else self._read(name)
        self._services[name] = _Service(service, state)
        return service

    def _read(self, name: str) -> Any:
        return self._store.get_feature_service(name, allow_cache=True)


class _Service(NamedTuple):
    service: Any
    state: RegistryState
