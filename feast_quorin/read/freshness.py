"""When to look at a registry again, and whether it has changed, by the rules of Feast's own registries.

Registries that keep a copy (Feast's file registry on any storage, SQL, Snowflake) are watched through the copy: an
apply in this process, a refresh, or the first request after its time to live replaces it. A remote registry keeps no
copy, so it is asked again after :data:`REMOTE_SECONDS`.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from feast.infra.registry.caching_registry import CachingRegistry
from feast.infra.registry.registry import Registry

REMOTE_SECONDS = 1.0
"""How long requests rely on what a remote registry said."""


class RegistryState:
    """The state of a registry at one time."""

    __slots__ = ("_content", "_created", "_deadline", "registry")

    def __init__(self, registry: Any) -> None:
        self.registry = registry
        self._created: Any = None
        self._content: Any = None
        if _is_remote(registry):
            self._deadline = time.time() + REMOTE_SECONDS
        else:
            self._created = registry.cached_registry_proto_created
            self._content = _content(registry)
            self._deadline = _deadline(registry)

    def holds(self, registry: Any) -> bool:
        """Whether Feast would go on with its copy, without another look at the registry."""
        return (
            registry is self.registry
            and (self._created is None or registry.cached_registry_proto_created is self._created)
            and time.time() <= self._deadline
        )

    def is_same(self, other: RegistryState) -> bool:
        """Whether the registry has the same content as in ``other``. False for remote registries, which can't tell."""
        return self.registry is other.registry and self._content is not None and self._content == other._content


def current_state(registry: Any, project: str) -> RegistryState:
    """The registry's state, after the refresh that is due if its copy has expired."""
    if not _is_remote(registry):
        registry.get_project(project, allow_cache=True)
    return RegistryState(registry)


def can_tell_changes(registry: Any) -> bool:
    """Whether changes of this registry can be noticed. False for a remote registry with authentication: Feast has it
    check the permissions of every request.
    """
    if _is_remote(registry):
        return bool(registry.auth_config.type == "no_auth")
    return type(registry) is Registry or isinstance(registry, CachingRegistry)


def _is_remote(registry: Any) -> bool:
    """Whether this is a remote registry. Its module needs an optional library, so it is not imported here."""
    module = sys.modules.get("feast.infra.registry.remote")
    return module is not None and isinstance(registry, module.RemoteRegistry)


def _content(registry: Any) -> Any:
    """A value that changes with the content: the version of a file, the whole content of a database."""
    proto = registry.cached_registry_proto
    return proto.version_id if type(registry) is Registry else proto


def _deadline(registry: Any) -> float:
    """When the registry's copy expires, in seconds since the epoch."""
    if type(registry) is not Registry and registry.cache_mode != "sync":
        return math.inf  # A thread of the registry's own refreshes it.
    ttl = registry.cached_registry_proto_ttl.total_seconds()
    return registry.cached_registry_proto_created.timestamp() + ttl if ttl > 0 else math.inf
