"""The table of ``quorin top``: left and right go by whole columns. Needs Textual, as its screen does."""

from __future__ import annotations

from itertools import accumulate
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable


class SegmentTable(DataTable[str]):
    """Segments, one a row; the first column stays where it is, and the others scroll behind it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "detail")]

    class Scrolled(Message):
        """Other columns are in view."""

    def action_cursor_right(self) -> None:
        """Put the next column behind the first."""
        self._go(next((start for start in self._starts() if start > self.scroll_x), self.max_scroll_x))

    def action_cursor_left(self) -> None:
        """Put the column before behind the first."""
        self._go(max((start for start in self._starts() if start < self.scroll_x), default=0))

    def watch_scroll_x(self, old_value: float, new_value: float) -> None:
        """Say that other columns are in view."""
        super().watch_scroll_x(old_value, new_value)
        self.post_message(self.Scrolled())

    def on_resize(self) -> None:
        """Say that other columns are in view, once they are laid out."""
        self.call_after_refresh(self.post_message, self.Scrolled())

    def in_view(self) -> tuple[int, int]:
        """The first and the last of the scrolling columns that are in view as a whole, counted from 1."""
        ends = list(accumulate(self._widths()))
        left, right = self.scroll_x, self.scroll_x + self._room()
        shown = [
            number for number, end in enumerate(ends, 2) if end <= right and end - self._widths()[number - 2] >= left
        ]
        return (shown[0], shown[-1]) if shown else (2, 2)

    def hides_columns(self) -> bool:
        """Whether some columns are out of view."""
        return sum(self._widths()) > self._room()

    def _go(self, x: float) -> None:
        self.scroll_to(x=min(x, self.max_scroll_x), animate=False, immediate=True)

    def _starts(self) -> list[int]:
        return list(accumulate(self._widths(), initial=0))[:-1]

    def _widths(self) -> list[int]:
        return [column.get_render_width(self) for column in self.ordered_columns[self.fixed_columns :]]

    def _room(self) -> int:
        fixed = sum(column.get_render_width(self) for column in self.ordered_columns[: self.fixed_columns])
        return self.scrollable_content_region.width - fixed
