"""How notebooks show a segment."""

from __future__ import annotations

from html import escape
from typing import Any

from quorin.engine.words import counted, html_of_fields, size
from quorin.errors import SegmentClosedError


class Shown:
    """What a segment is in a notebook: its rows and memory, and a table of its fields."""

    __slots__ = ()

    def _repr_html_(self: Any) -> str:
        try:
            stats, schema = self.stats(), self.schema
        except SegmentClosedError:
            return f"<code>{escape(repr(self))}</code>"
        summary = f"{counted(stats['rows'], 'entity')}, {size(stats['bytes'])}, generation {stats['generation']}"
        return html_of_fields(f"{schema.__name__} version {schema.version}: {summary}", schema.fields)
