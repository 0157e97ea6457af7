"""Which of a node's segments belong to a schema that was dropped, and which schemas a wiped control plane lacks."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from quorin.engine.backend.beginnings import beginning_in
from quorin.errors import SegmentNotFoundError
from quorin.logging import get_logger
from quorin.schema import schema_to_json

if TYPE_CHECKING:
    from quorin.engine.backend.protocols import Beginning, Beginnings
    from quorin.shm import SegmentRegistry

_log = get_logger(__name__)


class DroppedSchemas:
    """Compares the segments of a node with the schemas of the control plane.

    A schema that is dropped and stored again begins at another position of the log. A node that has its segment from
    before must not add the new rows to the old ones.
    """

    def __init__(self, registry: SegmentRegistry) -> None:
        self._registry = registry
        self._control = registry.backend.control

    def find(self) -> list[str]:
        """The schemas whose segment on this node is of a dropped schema of that name, which may be stored again since.

        A schema that is missing and was not dropped was lost with the control plane: it is stored again.

        :raises ConnectionFailedError: if the control plane cannot be reached.
        """
        state = self._registry.node.state()
        if not state.currents:
            return []
        # In this order: a schema that is dropped after the first step is not missing, and one that is stored again
        # after it is seen to begin elsewhere at the next look.
        schemas, dropped = self._control.schemas(), self._control.dropped_schemas()
        beginnings = self._beginnings()
        found = []
        for name in state.currents:
            if name in schemas:
                if _begins_elsewhere(name, state.beginning_of(name), beginnings):
                    found.append(name)
            elif name in dropped:
                found.append(name)
            else:
                self.restore(name)
        return found

    def begins_elsewhere(self, name: str) -> bool:
        """Whether this node has a segment of a schema that was dropped, and is stored again."""
        state = self._registry.node.state()
        return name in state.currents and _begins_elsewhere(name, state.beginning_of(name), self._beginnings())

    def _beginnings(self) -> dict[int, dict[str, Beginning]]:
        return {p: self._control.beginnings(p) for p in self._registry.partitioning.held}

    def restore(self, name: str) -> None:
        """Store the schema of this node's segment again, unless it is stored, or was dropped."""
        beginning = self._registry.node.state().beginning_of(name)
        with suppress(SegmentNotFoundError), self._registry.open_stored(name) as segment:
            text = schema_to_json(segment.stored_schema)
            if self._control.restore_schema(name, text, beginning=beginning):
                _log.warning("schema_restored", schema=name, why="the control plane had lost it")


def _begins_elsewhere(name: str, own: Beginnings, now: dict[int, dict[str, Beginning]]) -> bool:
    """Whether a schema begins elsewhere than the segment of it. A partition with the same beginning had no row of the
    dropped schema.
    """
    return any(name in of_one and of_one[name] != beginning_in(own, p) for p, of_one in now.items())
