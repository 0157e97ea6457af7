"""How old features may be to be served: ``max_age`` as settings and requests say it, and the limit of each feature.

A feature's limit is the shortest of those that apply to it: its view's ``ttl`` under ``enforce_ttl``, the setting
``max_age``, and what the request asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from quorin.assembly import duration_ns
from quorin.errors import InvalidMaxAgeError

if TYPE_CHECKING:
    from feast.repo_config import RepoConfig

Limits = tuple[tuple[str, timedelta], ...]
"""Limits by ``view`` or ``view:feature``, sorted; one for all under an empty name."""

_MICROSECOND_NS = 1000


def limits_of(max_age: Any) -> Limits:
    """The limits that a setting or a request asks for: seconds or a ``timedelta``, for all views or by name.

    :raises InvalidMaxAgeError: for anything else, naming it.
    """
    if not isinstance(max_age, Mapping):
        return (("", _duration("max_age", max_age)),)
    for name in max_age:
        if not isinstance(name, str) or not all(name.split(":", 1)):
            raise InvalidMaxAgeError(f"max_age: expected names of views, or view:feature, got {name!r}")
    return tuple(sorted((name, _duration(f"max_age[{name!r}]", value)) for name, value in max_age.items()))


def _duration(where: str, value: Any) -> timedelta:
    microseconds = duration_ns(where, value) // _MICROSECOND_NS
    if not microseconds:
        raise InvalidMaxAgeError(f"{where}: expected at least a microsecond, got {value!r}")
    return timedelta(microseconds=microseconds)


def limits_of_settings(config: RepoConfig, table: Any, requested: Sequence[str]) -> dict[str, timedelta]:
    """The limits that the settings put on features of a view; none for the others."""
    settings, ttl = config.online_store, getattr(table, "ttl", None)
    enforced = dict.fromkeys(requested, ttl) if settings.enforce_ttl and ttl else {}
    return shortest(enforced, limits_for(settings.age_limits, table, requested))


def limits_for(limits: Limits, table: Any, requested: Iterable[str]) -> dict[str, timedelta]:
    """Those of some limits that apply to features of a view: by ``view:feature``, else by view, else for all.

    A view goes by its own name and by that in the response. Names of other views are ignored.

    :raises InvalidMaxAgeError: for a feature that the view does not have.
    """
    if not limits:
        return {}
    names = {table.name, table.projection.name, table.projection.name_to_use()}
    of_all, of_view = None, None
    of_features: dict[str, timedelta] = {}
    for name, limit in limits:
        view, _, feature = name.partition(":")
        if not view:
            of_all = limit
        elif view in names and not feature:
            of_view = limit
        elif view in names:
            of_features[feature] = limit
    unknown = of_features.keys() - {field.name for field in table.features}
    if unknown:
        raise InvalidMaxAgeError(f"max_age: view {table.name!r} has no feature {min(unknown)!r}")
    rest = of_all if of_view is None else of_view
    found = {feature: of_features.get(feature, rest) for feature in requested}
    return {feature: limit for feature, limit in found.items() if limit is not None}


def limits_ns(features: Iterable[str], limits: Mapping[str, timedelta]) -> tuple[int, ...]:
    """The age limit of each feature in ns, 0 for none."""
    return tuple(duration_ns("max_age", limits[name]) if name in limits else 0 for name in features)


def shortest(*limits: Mapping[str, timedelta]) -> dict[str, timedelta]:
    """The shorter limit of each feature."""
    found: dict[str, timedelta] = {}
    for some in limits:
        for feature, limit in some.items():
            found[feature] = min(limit, found.get(feature, limit))
    return found
