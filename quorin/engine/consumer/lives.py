"""Which of a node's segments belong to a schema that was dropped, and which schemas a wiped control plane lacks."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from quorin.engine.backend.beginnings import beginning_in
from quorin.errors import SegmentNotFoundError
from quorin.logging import get_logger
from quorin.schema import schema_to_json

if TYPE_CHECKING:
    from quorin.shm import SegmentRegistry

_log = get_logger(__name__)


class Lives:
    """Compares the segments of a node with the schemas of the control plane.

    A schema that is dropped and stored again begins a new life at another position of the log. A node that had its
    segment from before must not add the rows of the new life to those of the old one.
    """

    def __init__(self, registry: SegmentRegistry) -> None:
        self._registry = registry
        self._control = registry.backend.control

    def ended(self) -> list[str]:
        """The schemas whose segment on this node is of a former life: dropped, or stored again since.

        A schema that is missing and was not dropped was lost with the control plane: it is stored again.

        :raises ConnectionFailedError: if the control plane cannot be reached.
        """
        state = self._registry.node.state()
        if not state.currents:
            return []
        # In this order: a schema that is dropped after the first step is not missing, and one that is stored again
        # after it is seen to be of another life at the next look.
        schemas, dropped = self._control.schemas(), self._control.dropped_schemas()
        partitioning = self._registry.partitioning
        beginnings = {p: self._control.beginnings(p) for p in partitioning.held}
        ended = []
        for name in state.currents:
            own = state.beginning_of(name)
            if name in schemas:
                # A partition with the same beginning had no row in the former life.
                if any(name in found and found[name] != beginning_in(own, p) for p, found in beginnings.items()):
                    ended.append(name)
            elif name in dropped:
                ended.append(name)
            else:
                self.restore(name)
        return ended

    def restore(self, name: str) -> None:
        """Store the schema of this node's segment again, unless it is stored, or was dropped."""
        beginning = self._registry.node.state().beginning_of(name)
        with suppress(SegmentNotFoundError), self._registry.open_stored(name) as segment:
            text = schema_to_json(segment.stored_schema)
            if self._control.restore_schema(name, text, beginning=beginning):
                _log.warning("schema_restored", schema=name, why="the control plane had lost it")
