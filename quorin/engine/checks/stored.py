"""The checks of schemas in the control plane: for processes that know a schema by its JSON, which has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.checks.declared import checks_from_json, checks_to_json

if TYPE_CHECKING:
    from quorin.engine.backend import ControlPlane
    from quorin.engine.checks.declared import Check
    from quorin.schema import Schema


def checks_of(schema: Schema, control: ControlPlane) -> tuple[Check, ...]:
    """The checks that a schema's class declares, else those that the control plane has of it."""
    if schema.checks:
        return tuple(schema.checks)
    text = control.checks().get(schema.__name__)
    return () if text is None else checks_from_json(text)


def store_checks(control: ControlPlane, schema: Schema) -> None:
    """Let the control plane have the checks that a schema's class declares. A class without checks changes nothing:
    it may have been made from JSON, which has none.
    """
    if schema.checks:
        control.put_checks(schema.__name__, checks_to_json(schema.checks))
