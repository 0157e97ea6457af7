"""When a registry has to be asked again, and whether it has changed: as Feast's own registries say it.

Registries that keep a copy (Feast's file registry on any storage, SQL, Snowflake) are looked at through it: it is
replaced by an apply in this process, a refresh, or the first request after its time to live. A remote registry keeps
none, so it is asked again after :data:`REMOTE_SECONDS`.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from feast.infra.registry.caching_registry import CachingRegistry
from feast.infra.registry.registry import Registry

REMOTE_SECONDS = 1.0
"""How long a request may go on with what a remote registry said before."""


class Sign:
    """What a registry was like when it was asked."""

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
        """Whether Feast would go on with what it knows, without another look."""
        return (
            registry is self.registry
            and (self._created is None or registry.cached_registry_proto_created is self._created)
            and time.time() <= self._deadline
        )

    def is_same(self, other: Sign) -> bool:
        """Whether the registry has the same content as when ``other`` was taken. A remote one can't tell."""
        return self.registry is other.registry and self._content is not None and self._content == other._content


def look(registry: Any, project: str) -> Sign:
    """The registry's sign, after the refresh that is due if its time has run out."""
    if not _is_remote(registry):
        registry.get_project(project, allow_cache=True)
    return Sign(registry)


def is_known(registry: Any) -> bool:
    """Whether there is a way to tell that this registry changed. A remote one that asks who wants to know is left to
    Feast, which asks it in every request.
    """
    if _is_remote(registry):
        return bool(registry.auth_config.type == "no_auth")
    return type(registry) is Registry or isinstance(registry, CachingRegistry)


def _is_remote(registry: Any) -> bool:
    """Whether this is a remote registry, whose module needs a library that need not be installed."""
    module = sys.modules.get("feast.infra.registry.remote")
    return module is not None and isinstance(registry, module.RemoteRegistry)


def _content(registry: Any) -> Any:
    """A file says with its version whether it is the same; a database says nothing that is fine enough."""
    proto = registry.cached_registry_proto
    return proto.version_id if type(registry) is Registry else proto


def _deadline(registry: Any) -> float:
    """When the registry's copy runs out, in seconds since the epoch."""
    if type(registry) is not Registry and registry.cache_mode != "sync":
        return math.inf  # A thread of its own refreshes it.
    ttl = registry.cached_registry_proto_ttl.total_seconds()
    return registry.cached_registry_proto_created.timestamp() + ttl if ttl > 0 else math.inf
