"""Checks that a feature view's tags declare: what a new generation of it must hold before it is served.

The tag ``quorin_checks`` of a view has a list of checks in YAML or JSON, with the names of features as fields; that of
a feature has a list of its checks, without a field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from quorin.errors import SchemaError
from quorin.schema import Check, check_checks, checks_from_values

if TYPE_CHECKING:
    from feast_quorin.views import StoredView

TAG = "quorin_checks"


def view_checks(table: Any, view: StoredView) -> tuple[Check, ...]:
    """The checks of a Feast view and its features, of the engine's fields.

    :raises SchemaError: naming the view and what is wrong with a check.
    """
    values = _parsed(view.name, getattr(table, "tags", None))
    for feature in table.features:
        of_feature = _parsed(f"{view.name}:{feature.name}", getattr(feature, "tags", None))
        values += [{**one, "field": feature.name} if isinstance(one, dict) else one for one in of_feature]
    try:
        checks = []
        for check in checks_from_values(values):
            stored = view.features.get(check.field_name or "")
            if check.field_name is not None and stored is None:
                raise SchemaError(f"{check}: there is no such feature; there are {', '.join(view.features)}")
            checks.append(check if stored is None else check.of_field(stored.field))
        return check_checks(view.schema.__name__, checks, view.schema.fields)
    except SchemaError as error:
        raise SchemaError(f"feature view {view.name!r}, tag {TAG}: {error}") from None


def _parsed(owner: str, tags: dict[str, str] | None) -> list[Any]:
    text = (tags or {}).get(TAG)
    if text is None:
        return []
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SchemaError(f"{owner}, tag {TAG}: expected YAML or JSON, got {text!r}") from error
    if not isinstance(values, list):
        raise SchemaError(f"{owner}, tag {TAG}: expected a list of checks, got {text!r}")
    return values
