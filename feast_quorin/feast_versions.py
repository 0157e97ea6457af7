"""What each part of the plugin needs of Feast beyond its public interface, and what is lost without it.

The plugin works with every Feast from :data:`OLDEST`. A part whose needs the installed Feast does not meet leaves its
work to Feast's own code, which gives the same answers, and says so once in a process, in a warning ``feast_differs``.
Needs are private functions that take the arguments that :mod:`feast_quorin.feast_private` passes. Parts that copy or
correct what Feast itself does also need a version whose behaviour the tests have seen: no name tells that it changed.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import feast

from quorin.logging import get_logger

OLDEST = (0, 64)
"""The oldest Feast that the tests run with."""
NEWEST = (0, 67)
"""The newest Feast that the tests run with."""

_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class FeastPart:
    """A part of the plugin. ``needs`` has ``module:name`` of functions of Feast, with the number of positional
    arguments that each is called with; None for what is not called. ``since`` and ``until`` are the versions of Feast
    whose behaviour the part copies.
    """

    lost: str
    needs: dict[str, int | None]
    since: tuple[int, int] = OLDEST
    until: tuple[int, int] | None = None


COMPILED_READS = FeastPart(
    "requests are resolved anew for every read and answered through protobuf, as with any other online store",
    {
        "feast.utils:_get_online_request_context": 4,
        "feast.utils:_get_table_entity_values": 3,
        "feast.infra.online_stores.online_store:OnlineStore._build_feature_types": 1,
        "feast.online_response:_convert_uuids_for_arrow": 1,
    },
)
VIEW_READS = FeastPart(
    "Feast's own path reads views one after the other, through one list of protobuf values an entity",
    {
        "feast.utils:_get_unique_entities": 3,
        "feast.infra.online_stores.online_store:OnlineStore._read_features_per_fv": 8,
        "feast.infra.online_stores.online_store:OnlineStore._read_features_per_fv_async": 8,
    },
)
ON_DEMAND = FeastPart(
    "requests with on-demand views take Feast's own path",
    {"feast.utils:_parse_feature_ref": 1, "feast.utils:_apply_aggregations_to_response": 4},
    since=(0, 67),
    until=NEWEST,
)
DOCUMENTS = FeastPart(
    "retrieved documents come in the order of their keys, not of their distances",
    {"feast.utils:_get_unique_entities_from_values": 1},
    until=NEWEST,
)
METRICS = FeastPart("Feast's own metrics do not count reads", {"feast.metrics:_config": None})
ARROW_MATERIALIZATION = FeastPart(
    "the compute engine materializes through protobuf values, as Feast's local engine does",
    {
        "feast.infra.compute_engines.local.compute:LocalComputeEngine._materialize_one": 3,
        "feast.infra.compute_engines.local.compute:LocalComputeEngine._get_backend": 2,
    },
)


@cache
def has(part: FeastPart) -> bool:
    """Whether the installed Feast meets a part's needs. If not, the first call logs what is lost."""
    unmet = [path for path, arguments in part.needs.items() if not _takes(path, arguments)]
    version = installed()
    if version < part.since or (part.until is not None and version > part.until):
        unmet.append(f"a version from {_text(part.since)}" + (f" to {_text(part.until)}" if part.until else ""))
    for need in unmet:
        say_lost(part, need)
    return not unmet


@cache
def say_lost(part: FeastPart, missing: str) -> None:
    """Log, once in a process, that a part leaves its work to Feast because ``missing`` is not as it needs it."""
    _log.warning("feast_differs", feast=feast.__version__, missing=missing, lost=part.lost)


def installed() -> tuple[int, int]:
    """The installed Feast's version, to its second number; zeros for one without numbers."""
    numbers = re.match(r"(\d+)\.(\d+)", feast.__version__)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _takes(path: str, arguments: int | None) -> bool:
    """Whether Feast has a name, and a call with so many positional arguments suits it."""
    module, _, names = path.partition(":")
    try:
        found: Any = import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
        if arguments is not None:
            inspect.signature(found).bind(*[None] * arguments)
    except (ImportError, AttributeError, TypeError):
        return False
    return True


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
