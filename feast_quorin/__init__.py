"""Quorin as a Feast online store.

``online_store: {type: quorin}`` in ``feature_store.yaml``, or the full class path ``feast_quorin.QuorinOnlineStore``;
``batch_engine: {type: feast_quorin.QuorinComputeEngine}`` and ``provider: feast_quorin.QuorinProvider`` write faster.
Feast is imported at the first access to one of the names, not when this package is. Every start of Python runs this
file (see ``feast_quorin.hook``), so it imports nothing, not even ``typing``.
"""

TYPE_CHECKING = False  # Type checkers take this name as true.
if TYPE_CHECKING:
    from feast_quorin.compute_engine import QuorinComputeEngine, QuorinComputeEngineConfig
    from feast_quorin.online_store import QuorinOnlineStore, QuorinOnlineStoreConfig
    from feast_quorin.provider import QuorinProvider
    from feast_quorin.read.as_of import read_at
    from feast_quorin.read.request_id import request_id

__all__ = [
    "QuorinComputeEngine",
    "QuorinComputeEngineConfig",
    "QuorinOnlineStore",
    "QuorinOnlineStoreConfig",
    "QuorinProvider",
    "read_at",
    "request_id",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from quorin.errors import needs_extra

    with needs_extra("feast"):
        if name == "QuorinProvider":
            from feast_quorin import provider as module
        elif name == "read_at":
            from feast_quorin.read import as_of as module  # type: ignore[no-redef]
        elif name == "request_id":
            from feast_quorin.read import request_id as module  # type: ignore[no-redef]
        elif name.startswith("QuorinCompute"):
            from feast_quorin import compute_engine as module  # type: ignore[no-redef]
        else:
            from feast_quorin import online_store as module  # type: ignore[no-redef]
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
