"""The screen of ``quorin top``. Needs Textual, so it is imported only when the command runs."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from quorin.cli.inspect import detail
from quorin.cli.top_model import COLUMNS, Line, Look, lines, look, summary
from quorin.errors import QuorinError

if TYPE_CHECKING:
    from quorin.engine.ops.observe import Observer


class Detail(ModalScreen[None]):
    """One segment, as ``quorin inspect`` shows it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "back"),
    ]
    DEFAULT_CSS = "Detail { align: center middle; } Detail VerticalScroll { width: 90%; height: 80%; border: round; }"

    def __init__(self, name: str, facts: dict[str, str]) -> None:
        super().__init__()
        self._name_shown = name
        self._facts = facts

    def compose(self) -> ComposeResult:
        """The segment's details, one per line."""
        width = max(map(len, self._facts), default=0)
        text = "\n".join(f"{name:<{width}}  {value}" for name, value in self._facts.items())
        yield VerticalScroll(Static(text, markup=False, id="facts"))


class Top(App[None]):
    """A table of segments, refreshed every ``interval`` seconds."""

    TITLE = "quorin top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("s", "sort", "sort by next column"),
        Binding("r", "reverse", "reverse"),
        Binding("p", "pause", "pause"),
        Binding("enter", "detail", "detail"),
    ]

    def __init__(self, observer: Observer, interval: float) -> None:
        super().__init__()
        self._observer = observer
        self._interval = interval
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quorin-top")
        self._before: Look | None = None
        self._lines: list[Line] = []
        self._sort_by, self._reversed, self._paused = 0, False, False

    def compose(self) -> ComposeResult:
        """A summary, the table and the keys."""
        yield Static("loading …", id="summary", markup=False)
        yield DataTable[str](id="segments", cursor_type="row", zebra_stripes=True)
        yield Footer()

    async def on_mount(self) -> None:
        """Start refreshing."""
        self.query_one("#segments", DataTable).add_columns(*COLUMNS)
        await self.look_again()
        self.set_interval(self._interval, self.look_again)

    def on_unmount(self) -> None:
        """Stop the observing thread."""
        self._thread.shutdown(wait=False)

    async def look_again(self) -> None:
        """Observe and refresh; show the error of an unreachable control plane, and retry at the next interval."""
        if self._paused:
            return
        try:
            now = await asyncio.get_running_loop().run_in_executor(self._thread, look, self._observer)
        except QuorinError as error:
            self.query_one("#summary", Static).update(str(error))
            return
        before = self._before or now
        self._before = now
        self._lines = lines(before, now)
        self.query_one("#summary", Static).update(summary(before, now))
        self._show()

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._sort_by = (self._sort_by + 1) % len(COLUMNS)
        self._reversed = self._sort_by > 0
        self._show()

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._reversed = not self._reversed
        self._show()

    def action_pause(self) -> None:
        """Pause or resume."""
        self._paused = not self._paused
        self._show()

    def action_detail(self) -> None:
        """Show the selected segment in detail."""
        table = self.query_one("#segments", DataTable)
        if self._lines and self._before is not None:
            selected = self._lines[table.cursor_row]
            self.push_screen(Detail(selected.schema_name, detail(selected.state, self._before.seen)))

    def on_data_table_row_selected(self) -> None:
        """Show the row's segment when enter is pressed."""
        self.action_detail()

    def _show(self) -> None:
        # Names break ties, ascending in either direction of the column.
        self._lines.sort(key=lambda line: line.schema_name)
        self._lines.sort(key=lambda line: line.keys[self._sort_by], reverse=self._reversed)
        table = self.query_one("#segments", DataTable)
        row = table.cursor_row
        table.clear()
        for line in self._lines:
            table.add_row(*line.cells)
        if self._lines:
            table.move_cursor(row=min(row, len(self._lines) - 1))
        order = "descending" if self._reversed else "ascending"
        table.border_title = f"by {COLUMNS[self._sort_by]}, {order}{', paused' if self._paused else ''}"
