"""A load as the control plane has it: which schema is being replaced, behind which position of the logs, and by whom.

This record lets one load at a time begin, decides once whether it is committed or aborted, and keeps the logs from
being trimmed behind the load's beginning until every live node has applied the commit. Nodes follow the logs alone,
which say the same: no entry that ends a load is written before it is decided here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from quorin.engine.backend import ControlPlane

SILENT_SECONDS = 30.0
"""A coordinator that gave no sign of life for so long counts as dead: another process may end its load."""
_STORED = {"ends": "commits", "earlier_ends": "earlier_commits"}
"""Fields whose names in the control plane are those of earlier versions."""


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """A schema's load. ``begin`` is its id, the same in the log of each partition: a position behind which the log has
    all entries of the load, and whatever was pushed since.

    ``logs`` are the identities of the logs by partition, ``rows`` the numbers of the load's rows in them, known from
    the commit on, and ``ends`` the positions of the entries that commit or abort it: 0 where none is known to be
    written yet, and nothing before the first.

    ``state`` goes from ``beginning`` to ``open``, ``committing`` and ``committed`` (only nodes that have not applied it
    need the load), or from one of the first two to ``aborting``. Each step is one exchange. Whoever finds a load
    ``committing`` or ``aborting`` may finish it: writing the entries again changes nothing.

    ``earlier_begin`` and ``earlier_ends`` are those of an earlier, committed load, which some node may not have
    applied when this one began; 0 and nothing for none.
    """

    schema_name: str
    stream_key: str
    begin: int
    logs: tuple[int, ...]
    coordinator: str
    started_ns: int
    state: Literal["beginning", "open", "committing", "committed", "aborting"] = "beginning"
    rows: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    earlier_begin: int = 0
    earlier_ends: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> OpenLoad:
        """From the JSON in the control plane."""
        stored: dict[str, Any] = json.loads(text)
        found: dict[str, Any] = {}
        for field in fields(cls):
            value = stored[_STORED.get(field.name, field.name)]
            found[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**found)

    def to_json(self) -> str:
        """The record's text, which compare-and-set compares."""
        stored = {_STORED.get(name, name): value for name, value in asdict(self).items()}
        return json.dumps(stored, sort_keys=True)

    @property
    def held(self) -> int:
        """The position behind which the logs are needed."""
        return self.earlier_begin or self.begin

    @property
    def can_be_aborted(self) -> bool:
        """Whether its commit is not decided."""
        return self.state in ("beginning", "open", "aborting")

    def exchange(self, control: ControlPlane, **changes: Any) -> OpenLoad | None:
        """Store the record with changes; None, and nothing has changed, if another process has changed it."""
        changed = replace(self, **changes)
        return changed if changed.store(control, in_place_of=self) else None

    def store(
        self, control: ControlPlane, *, in_place_of: OpenLoad | None, beside: tuple[str | None] | None = None
    ) -> bool:
        """Store the record in place of another one, or of none; False, and nothing has changed, if there is a third, or
        the growth is not that of ``beside``.
        """
        expected = None if in_place_of is None else in_place_of.to_json()
        return _swapped(control, self.schema_name, self.to_json(), expected=expected, beside=beside)

    def remove(self, control: ControlPlane) -> bool:
        """Remove the record, or leave that of the earlier load; False if another process has changed it."""
        if self.earlier_ends and self.state != "committed":
            earlier = {"begin": self.earlier_begin, "ends": self.earlier_ends, "state": "committed"}
            return self.exchange(control, **earlier, earlier_begin=0, earlier_ends=()) is not None
        return _swapped(control, self.schema_name, None, expected=self.to_json())


def open_loads(control: ControlPlane) -> dict[str, tuple[OpenLoad, float]]:
    """The loads by schema name, each with the seconds since its coordinator's last sign of life."""
    return {name: (OpenLoad.parse(text), silent) for name, (text, silent) in control.loads().items()}


def _swapped(
    control: ControlPlane,
    name: str,
    json: str | None,
    *,
    expected: str | None,
    beside: tuple[str | None] | None = None,
) -> bool:
    """:meth:`ControlPlane.swap_load`, which is repeated when its answer is lost, and then finds what it has stored."""
    if control.swap_load(name, json, expected=expected, beside=beside):
        return True
    stored = control.loads().get(name)
    return (None if stored is None else stored[0]) == json
