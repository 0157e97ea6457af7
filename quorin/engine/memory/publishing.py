"""Making a segment the current one of its schema: the schema in the control plane, then the name on the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.checks.stored import store_checks
from quorin.engine.rows.compatibility import can_upgrade
from quorin.errors import SchemaError, SegmentConflictError, SegmentNotFoundError
from quorin.schema import schema_from_json, schema_to_json

if TYPE_CHECKING:
    from quorin.engine.backend import ControlPlane
    from quorin.engine.backend.protocols import Beginnings
    from quorin.engine.memory.node import Node
    from quorin.engine.memory.segment import Segment
    from quorin.schema import Schema


def make_current(
    node: Node,
    control: ControlPlane,
    segment: Segment,
    replacing: str | None,
    beginning: Beginnings,
    *,
    restores: bool,
) -> None:
    """Store a segment's schema and its checks, and make the segment current on the node, as
    :meth:`quorin.shm.SegmentRegistry.publish` says.

    :raises SegmentConflictError: if another segment than ``replacing`` is current.
    """
    view = segment.current_view()
    name = view.stored.__name__

    def put_schema() -> None:
        _put_schema(control, view.stored, restores=restores, beginning=beginning)
        store_checks(control, view.stored)

    is_current = node.publish(name, view.name, expected=replacing, beginning=beginning, before=put_schema)
    if not is_current:
        raise SegmentConflictError(
            f"another process made a segment of {name!r} current at the same time: expected {replacing!r}, "
            f"found {node.current(name)!r}"
        )


def _put_schema(control: ControlPlane, schema: Schema, *, restores: bool, beginning: Beginnings) -> None:
    """Let the control plane have a schema, or keep the later version that it has.

    :raises SegmentNotFoundError: if it only ``restores`` one that the control plane may have lost, and it was dropped,
        or replaced by another.
    """
    name, text = schema.__name__, schema_to_json(schema)
    while (stored := control.schemas().get(name)) != text:
        if stored is not None and _can_become(schema, stored):
            return
        if stored is not None and restores:
            raise SegmentNotFoundError(f"the control plane has another schema {name!r} by now")
        if restores:
            if not control.restore_schema(name, text, beginning=beginning) and name in control.dropped_schemas():
                raise SegmentNotFoundError(f"the schema {name!r} was dropped from the control plane")
            continue
        if control.swap_schema(name, text, expected=stored):
            return


def _can_become(schema: Schema, text: str) -> bool:
    """Whether a schema can be upgraded to one in JSON."""
    try:
        return can_upgrade(schema, schema_from_json(text))[0]
    except SchemaError:
        return False
