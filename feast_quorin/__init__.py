"""Quorin as a Feast online store.

``online_store: {type: quorin}`` in ``feature_store.yaml``, or the full class path ``feast_quorin.QuorinOnlineStore``.
Feast is imported when one of the names is first asked for, not when this package is. Every start of Python runs this
file (see ``feast_quorin.hook``), so it imports nothing, not even ``typing``.
"""

TYPE_CHECKING = False  # Type checkers take this name as true.
if TYPE_CHECKING:
    from feast_quorin.online_store import QuorinOnlineStore, QuorinOnlineStoreConfig

__all__ = ["QuorinOnlineStore", "QuorinOnlineStoreConfig"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from feast_quorin import online_store

    return getattr(online_store, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
