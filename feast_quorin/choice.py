"""What tells one choice of features from another: the list of their names, or a service with its projections."""

from __future__ import annotations

from typing import Any, NamedTuple

from feast.feature_service import FeatureService

_MOST_SERVICES = 256


class Choices:
    """Keys for choices of features, those of services kept for as long as the service stays as it is."""

    def __init__(self) -> None:
        self._services: dict[int, _Seen] = {}

    def key(self, features: Any) -> Any:
        """What is equal for equal choices, or None for one that is left to Feast."""
        if type(features) is list:
            return tuple(features)
        seen = self._services.get(id(features))
        if seen is None or not seen.is_still(features):
            if not isinstance(features, FeatureService) or features._pending_feature_refs:
                return None
            if len(self._services) >= _MOST_SERVICES:
                self._services.clear()
            seen = self._services[id(features)] = _Seen.of(features)
        return seen.key


class _Seen(NamedTuple):
    """A service as it was. Lists and dictionaries are copies, so that what is done to those of the service shows."""

    service: FeatureService
    parts: list[tuple[Any, ...]]
    key: Any

    @classmethod
    def of(cls, service: FeatureService) -> _Seen:
        parts = [
            (view, view.name_alias, view.version_tag, dict(view.join_key_map), list(view.features))
            for view in service.feature_view_projections
        ]
        names = [
            (view.name, alias, version, *keys.items(), *[field.name for field in fields])
            for view, alias, version, keys, fields in parts
        ]
        return cls(service, parts, (FeatureService, service.name, *names))

    def is_still(self, service: FeatureService) -> bool:
        """Whether this is the service, with the same projections."""
        views = service.feature_view_projections
        if service is not self.service or len(views) != len(self.parts) or service._pending_feature_refs:
            return False
        for now, (view, alias, version, keys, fields) in zip(views, self.parts):  # noqa: B905 - of equal length
            if (
                now is not view
                or now.name_alias != alias
                or now.version_tag != version
                or now.join_key_map != keys
                or now.features != fields
            ):
                return False
        return True
