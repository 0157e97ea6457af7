"""Objects of the registry by name. Feast makes one from protobuf for each request, which takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from feast_quorin.cache import BoundedCache
from feast_quorin.read.freshness import RegistryState, can_tell_changes, current_state

Key = TypeVar("Key")
Value = TypeVar("Value")
_MAX_OBJECTS = 256


class RegistryObjects(Generic[Key, Value]):
    """What ``read`` makes of one store's registry for a key, kept while the registry stays the same. Threads may share
    it.
    """

    def __init__(self, store: Any, read: Callable[[Key], Value]) -> None:
        self._store = store
        self._read = read
        self._objects: BoundedCache[Key, _Object[Value]] = BoundedCache(_MAX_OBJECTS)

    def get(self, key: Key) -> Value:
        """The object for this key; raises what ``read`` does."""
        registry = self._store.registry
        cached = self._objects.get(key)
        if cached is not None and cached.state.holds(registry):
            return cached.value
        if not can_tell_changes(registry):
            return self._read(key)
        state = current_state(registry, self._store.project)
        value = cached.value if cached is not None and cached.state.is_same(state) else self._read(key)
        self._objects[key] = _Object(value, state)
        return value


class Services(RegistryObjects[str, Any]):
    """The feature services of a store by name. ``get`` raises ``FeatureServiceNotFoundException`` for another one."""

    def __init__(self, store: Any) -> None:
        super().__init__(store, lambda name: store.get_feature_service(name, allow_cache=True))


class _Object(NamedTuple, Generic[Value]):
    value: Value
    state: RegistryState
