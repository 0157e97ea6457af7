"""A second feature store whose reads stay with generations: an old model beside a new one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from feast import FeatureStore
from feast.repo_config import RepoConfig

from feast_quorin.config import StoreSettings
from feast_quorin.online_store import QuorinOnlineStore

__all__ = ["pinned"]


@contextmanager
def pinned(store: FeatureStore, pin: str | Mapping[str, int | str] = "current") -> Iterator[FeatureStore]:
    """A feature store of the same repository whose reads stay with one generation of each view, until the block ends.

    ``pin`` is as the setting ``pin`` of ``feature_store.yaml``: ``"current"`` pins every view to the generation that is
    current at its first read; a mapping pins the named views, each to the number of a generation, to the newest of a
    version of its schema (``"v3"``), or to ``"current"``. ``store`` itself goes on, and so do writes through both.

    :raises ConfigError: for another ``pin``. :raises ValueError: if the online store is not Quorin's, or remote.
    """
    settings = store.config.online_store
    if not isinstance(settings, StoreSettings) or settings.remote is not None:
        raise ValueError(f"expected a feature store with `online_store: {{type: quorin}}`, got {settings!r}")
    other = FeatureStore(config=_config_with(store.config, settings, pin))
    other.repo_path = store.repo_path
    try:
        yield other
    finally:
        online: Any = other.provider.online_store
        if isinstance(online, QuorinOnlineStore):
            online.release()


def _config_with(config: RepoConfig, settings: StoreSettings, pin: str | Mapping[str, int | str]) -> RepoConfig:
    checked = StoreSettings.model_validate({"pin": pin if isinstance(pin, str) else dict(pin)}).pin
    values = config.model_dump(by_alias=True, exclude_unset=True)
    values["online_store"] = settings.model_copy(update={"pin": checked})
    return RepoConfig(**values)
