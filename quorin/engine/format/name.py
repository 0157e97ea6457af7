"""The name of a segment's file: ``quorin_<Schema>_<lineage><generation>``.

Twelve random hex digits are common to all generations of one segment, its *line*; eight more count the generations, so
that names of one line sort by age.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quorin.errors import CorruptSegmentError

if TYPE_CHECKING:
    from pathlib import Path

_LINEAGE_BYTES = 6
_GENERATION_DIGITS = 8
_NAME = re.compile(
    rf"quorin_([A-Za-z_][A-Za-z0-9_]*)_([0-9a-f]{{{2 * _LINEAGE_BYTES}}})([0-9a-f]{{{_GENERATION_DIGITS}}})\Z"
)


@dataclass(frozen=True, order=True, slots=True)
class SegmentName:
    """A schema, a lineage of twelve hex digits, and a generation; ordered by all three, so one line by generation."""

    schema: str
    lineage: str
    generation: int

    @classmethod
    def first(cls, schema: str) -> SegmentName:
        """The first generation of a new line."""
        return cls(schema, secrets.token_hex(_LINEAGE_BYTES), 1)

    @classmethod
    def match(cls, text: str) -> SegmentName | None:
        """The parts of a name; None if ``text`` is not the name of a segment."""
        match = _NAME.match(text)
        return cls(match[1], match[2], int(match[3], 16)) if match else None

    @classmethod
    def parse(cls, text: str) -> SegmentName:
        """The parts of a name. :raises CorruptSegmentError: if ``text`` is not the name of a segment."""
        name = cls.match(text)
        if name is None:
            raise CorruptSegmentError(f"{text!r} is no segment name: expected quorin_<Schema>_<20 hex digits>")
        return name

    def __str__(self) -> str:
        return f"{self.line}{self.generation:0{_GENERATION_DIGITS}x}"

    @property
    def line(self) -> str:
        """What the names of all generations begin with."""
        return f"quorin_{self.schema}_{self.lineage}"

    def at(self, generation: int) -> SegmentName:
        """Another generation of the same line."""
        return replace(self, generation=generation)

    def siblings(self, directory: Path) -> list[SegmentName]:
        """The generations of this line that have a file in ``directory``, this one included, oldest first."""
        names = (SegmentName.match(path.name) for path in directory.glob(f"{self.line}*"))
        return sorted(name for name in names if name is not None and name.line == self.line)


def is_same_line(name: str, other: str) -> bool:
    """Whether two texts name generations of one segment."""
    names = SegmentName.match(name), SegmentName.match(other)
    return names[0] is not None and names[1] is not None and names[0].line == names[1].line
