"""Cache keys for choices of features: a list of references, or a feature service with its projections."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

from feast.feature_service import FeatureService

from feast_quorin import feast_private
from feast_quorin.cache import BoundedCache

_MAX_SERVICES = 256


def digest(key: Any) -> str:
    """A text that is equal for equal keys of services, in every process."""
    return blake2b(repr(key[1:]).encode(), digest_size=16).hexdigest()


class ChoiceKeys:
    """Keys for choices of features. The key of a service is kept while the service stays as it is."""

    def __init__(self) -> None:
        self._services: BoundedCache[int, _ServiceCopy] = BoundedCache(_MAX_SERVICES)

    def key(self, features: Any) -> Any:
        """A value that is equal for equal choices; None for a choice that only Feast can resolve."""
        if type(features) is list:
            return tuple(features)
        copy = self._services.get(id(features))
        if copy is None or not copy.equals(features):
            if not isinstance(features, FeatureService) or feast_private.has_unresolved_features(features):
                return None
            copy = self._services[id(features)] = _ServiceCopy.of(features)
        return copy.key


class _ServiceCopy(NamedTuple):
    """A service at one time. Its lists and dictionaries are copied, so that changes to the service's own show."""

    service: FeatureService
    projections: list[tuple[Any, ...]]
    key: Any

    @classmethod
    def of(cls, service: FeatureService) -> _ServiceCopy:
        projections = [
            (view, view.name_alias, view.version_tag, dict(view.join_key_map), list(view.features))
            for view in service.feature_view_projections
        ]
        names = [
            (view.name, alias, version, *sorted(keys.items()), *[field.name for field in fields])
            for view, alias, version, keys, fields in projections
        ]
        return cls(service, projections, (FeatureService, service.name, *names))

    def equals(self, service: FeatureService) -> bool:
        """Whether this is the same service object, with the same projections."""
        views = service.feature_view_projections
        if (
            service is not self.service
            or len(views) != len(self.projections)
            or feast_private.has_unresolved_features(service)
        ):
            return False
        for current, (view, alias, version, keys, fields) in zip(views, self.projections):  # noqa: B905 - equal lengths
            if (
                current is not view
                or current.name_alias != alias
                or current.version_tag != version
                or current.join_key_map != keys
                or current.features != fields
            ):
                return False
        return True
