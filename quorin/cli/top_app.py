"""The screen of ``quorin top``. Needs Textual, so it is imported only when the command runs."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static

from quorin.cli.inspect import detail
from quorin.cli.top_model import COLUMNS, History, Line, Look, lines, look, names_of, summary
from quorin.cli.top_table import SegmentTable
from quorin.errors import QuorinError

if TYPE_CHECKING:
    from textual.events import Key

    from quorin.engine.ops.observe import Observer


class Facts(ModalScreen[None]):
    """Names and texts, one per line."""

    KEYS = "escape: back   ?: help"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "back"),
        Binding("question_mark", "help", "help", key_display="?"),
    ]
    DEFAULT_CSS = "Facts { align: center middle; } Facts VerticalScroll { width: 90%; height: 80%; border: round; }"

    def __init__(self, facts: dict[str, str]) -> None:
        super().__init__()
        self._facts = facts

    def compose(self) -> ComposeResult:
        """The names in a column, the texts behind them."""
        width = max(map(len, self._facts), default=0)
        text = "\n".join(f"{name:<{width}}  {value}" for name, value in self._facts.items())
        box = VerticalScroll(Static(text, markup=False, id="facts"))
        box.border_subtitle = self.KEYS
        yield box

    def action_help(self) -> None:
        """Show the keys and what the columns mean, over these facts."""
        self.app.push_screen(Help())


class Help(Facts):
    """The keys and what the columns mean."""

    KEYS = "escape: back"

    def __init__(self) -> None:
        keys = {"q": "quit", "s, r": "sort by the next column, reverse", "/": "filter by name", "p": "pause or resume",
                "← →": "the columns that do not fit", "↑ ↓": "select a segment", "enter": "it in detail",
                "?": "this help", "escape": "back from a detail, from help, from the filter"}  # fmt: skip
        super().__init__({**keys, "": "", **COLUMNS})

    def action_help(self) -> None:
        """Close it again."""
        self.dismiss()


class Top(App[None]):
    """A table of segments, refreshed every ``interval`` seconds."""

    TITLE = "quorin top"
    ENABLE_COMMAND_PALETTE = False
    DEFAULT_CSS = "#status { color: $accent; } #filter { display: none; height: 3; } DataTable { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("p", "pause", "pause"),
        Binding("question_mark", "help", "help", key_display="?"),
    ]

    def __init__(self, observer: Observer, interval: float, *, raw: bool = False) -> None:
        super().__init__()
        self._observer = observer
        self._interval = interval
        self._raw = raw
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quorin-top")
        self._before: Look | None = None
        self._lines: list[Line] = []
        self._history = History()
        self._sort_by, self._reversed, self._paused = 0, False, False

    def compose(self) -> ComposeResult:
        """A summary, the last minutes, what is shown, the table and the keys."""
        yield Static("loading …", id="summary", markup=False)
        yield Static("", id="history", markup=False)
        yield Static("", id="status", markup=False)
        yield SegmentTable(id="segments", cursor_type="row", zebra_stripes=True, fixed_columns=1)
        yield Input(placeholder="a part of the schema's name; escape shows all", id="filter")
        yield Footer()

    async def on_mount(self) -> None:
        """Start refreshing."""
        self.query_one("#segments", SegmentTable).focus()
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
        self._lines = lines(before, now, raw=self._raw)
        self._history.add(before, now)
        self.query_one("#summary", Static).update(summary(before, now))
        self.query_one("#history", Static).update(self._history.text(self.size.width))
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

    def action_filter(self) -> None:
        """Ask for a part of the names to show."""
        asked = self.query_one("#filter", Input)
        asked.display = True
        asked.focus()

    def action_help(self) -> None:
        """Show the keys and what the columns mean."""
        self.push_screen(Help())

    def action_detail(self) -> None:
        """Show the selected segment in detail."""
        table = self.query_one("#segments", SegmentTable)
        selected = self._shown()
        if selected and self._before is not None:
            line = selected[table.cursor_row]
            facts = detail(line.state, self._before.seen) | {"schema": line.name}
            if "problem" in facts:
                facts["problem"] = names_of(self._before, raw=self._raw).text(facts["problem"])
            self.push_screen(Facts(facts))

    def on_data_table_row_selected(self) -> None:
        """Show the row's segment when enter is pressed."""
        self.action_detail()

    def on_segment_table_scrolled(self) -> None:
        """Say which columns are in view."""
        self._tell()

    def on_input_changed(self) -> None:
        """Show the schemas whose names have the text."""
        self._show()

    def on_input_submitted(self) -> None:
        """Go back to the table, which stays filtered."""
        self.query_one("#segments", SegmentTable).focus()

    def on_key(self, event: Key) -> None:
        """Escape shows all schemas again."""
        asked = self.query_one("#filter", Input)
        if event.key == "escape" and asked.display:
            asked.value, asked.display = "", False
            self.query_one("#segments", SegmentTable).focus()

    def _shown(self) -> list[Line]:
        part = self.query_one("#filter", Input).value.lower()
        return [line for line in self._lines if part in line.name.lower()]

    def _show(self) -> None:
        # Names break ties, ascending in either direction of the column.
        self._lines.sort(key=lambda line: line.name)
        self._lines.sort(key=lambda line: line.keys[self._sort_by], reverse=self._reversed)
        table, shown = self.query_one("#segments", SegmentTable), self._shown()
        row, scrolled = table.cursor_row, table.scroll_x
        table.clear(columns=True)
        sorted_by, mark = list(COLUMNS)[self._sort_by], "▼" if self._reversed else "▲"
        table.add_columns(*(f"{name} {mark}" if name == sorted_by else name for name in COLUMNS))
        for line in shown:
            table.add_row(*line.cells)
        if shown:
            table.move_cursor(row=min(row, len(shown) - 1))
        table.scroll_to(x=scrolled, animate=False)
        self.call_after_refresh(self._tell)

    def _tell(self) -> None:
        """Say what the table shows: its order, the columns in view, the filter."""
        table, part = self.query_one("#segments", SegmentTable), self.query_one("#filter", Input).value
        parts = [f"by {list(COLUMNS)[self._sort_by]}, {'descending' if self._reversed else 'ascending'}"]
        if table.hides_columns():
            first, last = table.in_view()
            parts.append(f"columns {first} to {last} of {len(COLUMNS)}, ← → shows others")
        parts += [f"{len(self._shown())} of {len(self._lines)} schemas have {part!r}"] if part else []
        parts += ["PAUSED"] if self._paused else []
        self.query_one("#status", Static).update("  |  ".join(parts))
