"""Services with ``precompute_online``: answered from the live rows, which are as fast to read and never stale."""

from __future__ import annotations

from typing import Any

from feast.feature_service import FeatureService


def from_live_rows(features: Any) -> Any:
    """The same choice of features for Feast's generic path, without the precomputed vectors it would look for."""
    if not isinstance(features, FeatureService) or not features.precompute_online:
        return features
    return _LiveService(features)


class _LiveService(FeatureService):
    """A service that declares no precomputed vectors, and still equals the service in the registry."""

    def __init__(self, service: FeatureService) -> None:
        self.__dict__.update(vars(service))
        self.precompute_online = False
        self._service = service

    def __eq__(self, other: object) -> bool:
        return self._service == other

    __hash__ = FeatureService.__hash__
