"""``GET /ready``: whether this machine may serve."""

from __future__ import annotations

from typing import Any

from feast_quorin.online_store import QuorinOnlineStore
from quorin.http import readiness


def ready(store: Any, max_lag_seconds: float | None) -> dict[str, Any]:
    """What ``quorin ready --json`` prints for the store's deployment."""
    found = readiness(online_store(store).registry(store.config), max_lag_seconds=max_lag_seconds)
    schemas = [one.as_dict() for one in found]
    return {"ready": bool(found) and not any(one.problem for one in found), "schemas": schemas}


def online_store(store: Any) -> QuorinOnlineStore:
    """The online store of a feature store.

    :raises ValueError: if it is not Quorin's.
    """
    found = store.provider.online_store
    if not isinstance(found, QuorinOnlineStore):
        raise ValueError(f"expected `online_store: {{type: quorin}}`, got {type(found).__name__}")
    return found
