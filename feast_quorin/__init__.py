"""Quorin as a Feast online store.

``online_store: {type: quorin}`` in ``feature_store.yaml``, or the full class path ``feast_quorin.QuorinOnlineStore``;
``batch_engine: {type: feast_quorin.QuorinComputeEngine}`` and ``provider: feast_quorin.QuorinProvider`` write faster,
``registry_store_type: feast_quorin.QuorinRegistryStore`` keeps a registry's views from being built at every push.
Feast is imported at the first access to one of the names, not when this package is. Every start of Python runs this
file (see ``feast_quorin.hook``), so it imports nothing, not even ``typing``.
"""

TYPE_CHECKING = False  # Type checkers take this name as true.
if TYPE_CHECKING:
    from feast_quorin.compute_engine import QuorinComputeEngine as QuorinComputeEngine
    from feast_quorin.compute_engine import QuorinComputeEngineConfig as QuorinComputeEngineConfig
    from feast_quorin.feature_logs import logged_features as logged_features
    from feast_quorin.model_matrix import FeastModelReader as FeastModelReader
    from feast_quorin.model_matrix import model_reader as model_reader
    from feast_quorin.online_store import QuorinOnlineStore as QuorinOnlineStore
    from feast_quorin.online_store import QuorinOnlineStoreConfig as QuorinOnlineStoreConfig
    from feast_quorin.pinning import pinned as pinned
    from feast_quorin.provider import QuorinProvider as QuorinProvider
    from feast_quorin.read.as_of import read_at as read_at
    from feast_quorin.read.options import at_generation as at_generation
    from feast_quorin.read.options import at_least as at_least
    from feast_quorin.read.options import consistent as consistent
    from feast_quorin.read.options import max_age as max_age
    from feast_quorin.read.request_id import request_id as request_id
    from feast_quorin.registry_store import QuorinRegistryStore as QuorinRegistryStore
    from feast_quorin.skew_sides import skew as skew
    from feast_quorin.write.tokens import last_token as last_token

_MODULES = {
    "FeastModelReader": "model_matrix",
    "QuorinComputeEngine": "compute_engine",
    "QuorinComputeEngineConfig": "compute_engine",
    "QuorinOnlineStore": "online_store",
    "QuorinOnlineStoreConfig": "online_store",
    "QuorinProvider": "provider",
    "QuorinRegistryStore": "registry_store",
    "at_generation": "read.options",
    "at_least": "read.options",
    "consistent": "read.options",
    "last_token": "write.tokens",
    "logged_features": "feature_logs",
    "max_age": "read.options",
    "model_reader": "model_matrix",
    "pinned": "pinning",
    "read_at": "read.as_of",
    "request_id": "read.request_id",
    "skew": "skew_sides",
}
"""Where each public name is."""

__all__ = [*_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from quorin.errors import needs_extra

    with needs_extra("feast"):
        module = import_module(f"{__name__}.{_MODULES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
