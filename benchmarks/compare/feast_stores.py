"""Feast's SQLite and Redis stores, and Quorin's, beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def stores(directory: Path, redis_address: str) -> dict[str, Any]:
    """Feast stores by name, opened in directories of their own below `directory`."""
    from feast import FeatureStore, RepoConfig

    online = {
        "feast-sqlite": {"type": "sqlite", "path": str(directory / "online.db")},
        "feast-redis": {"type": "redis", "connection_string": redis_address},
        "feast-quorin": {"type": "feast_quorin.QuorinOnlineStore", "path": str(directory / "quorin")},
    }
    return {
        name: FeatureStore(
            config=RepoConfig(
                project="benchmark",
                provider="local",
                registry=str(directory / f"{name}.registry"),
                online_store=settings,
                entity_key_serialization_version=3,
            )
        )
        for name, settings in online.items()
    }
