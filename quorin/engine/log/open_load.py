"""A load as the control plane has it: which schema is being replaced, from which position of the log on, and by whom.

The log alone decides what happens to a load. This record lets one load at a time begin, and keeps the log from being
trimmed behind the load's beginning, until every live node has applied the commit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from quorin.engine.backend import ControlPlane

SILENT_SECONDS = 30.0
"""A coordinator that gave no sign of life for so long counts as dead: the next one may take its place."""


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """A schema's load. ``begin`` is its id: the position of the entry that began it, or a position before that while
    the entry is not written yet. ``commit`` is the position of its commit; 0 before that.

    ``state`` goes from ``beginning`` to ``open``, ``committing`` (the commit may be in the log) and ``committed`` (only
    nodes that have not applied it need the load), or from any but the last to ``aborting``. Each step is one exchange,
    so either the coordinator commits, or another process aborts.

    ``earlier_begin`` and ``earlier_commit`` are those of an earlier, committed load, which some node may not have
    applied when this one began; 0 for none.
    """

    schema_name: str
    stream_key: str
    log_identity: int
    begin: int
    commit: int
    coordinator: str
    started_ns: int
    state: Literal["beginning", "open", "committing", "committed", "aborting"] = "beginning"
    earlier_begin: int = 0
    earlier_commit: int = 0

    def to_json(self) -> str:
        """The record's text, which compare-and-set compares."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def held(self) -> int:
        """The position behind which the log is needed."""
        return self.earlier_begin or self.begin

    def exchange(self, control: ControlPlane, **changes: Any) -> OpenLoad | None:
        """Store the record with changes; None, and nothing has changed, if another process has changed it."""
        changed = replace(self, **changes)
        return changed if control.swap_load(self.schema_name, changed.to_json(), expected=self.to_json()) else None

    def remove(self, control: ControlPlane) -> bool:
        """Remove the record, or leave that of the earlier load; False if another process has changed it."""
        if self.earlier_commit and self.state != "committed":
            earlier = {"begin": self.earlier_begin, "commit": self.earlier_commit, "state": "committed"}
            return self.exchange(control, **earlier, earlier_begin=0, earlier_commit=0) is not None
        return control.swap_load(self.schema_name, None, expected=self.to_json())


def open_loads(control: ControlPlane) -> dict[str, tuple[OpenLoad, float]]:
    """The loads by schema name, each with the seconds since its coordinator's last sign of life."""
    return {name: (OpenLoad(**json.loads(text)), silent) for name, (text, silent) in control.loads().items()}
