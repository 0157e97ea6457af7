"""``quorin top``: its sums, its screen under Textual's pilot, and once through a real terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Static

from quorin.assembly import assemble, assemble_batch
from quorin.cli.top_app import Facts, Help, Top
from quorin.cli.top_model import COLUMNS, percentile, sparkline
from quorin.cli.top_table import SegmentTable
from quorin.engine.ops.observe import Observer
from quorin.layout import insert, pack_row
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry

ROOT = Path(__file__).parents[3]
SMALL = make_schema("TopSmall", [FeatureField("a", dtype.float32)])
LARGE = make_schema("TopLarge", [FeatureField("a", dtype.float32)])


@pytest.fixture
def segments(registry: SegmentRegistry) -> Iterator[list[Segment]]:
    made = []
    for schema, rows in ((SMALL, 2), (LARGE, 30)):
        made.append(registry.create(schema, capacity=100))
        for number in range(rows):
            insert(made[-1], f"id{number}", pack_row(schema, a=number))
    yield made
    for segment in made:
        registry.discard(segment)


@pytest.fixture
def observer(registry: SegmentRegistry, tmp_path: Path, segments: list[Segment]) -> Iterator[Observer]:
    with Observer(registry.backend, shm_dir=tmp_path / "shm") as observer:
        yield observer


def names(app: Top) -> list[str]:
    table = app.query_one("#segments", DataTable)
    return [str(table.get_row_at(row)[0]) for row in range(table.row_count)]


def cell(app: Top, schema: str, column: str) -> str:
    table = app.query_one("#segments", DataTable)
    (row,) = [row for row in map(table.get_row_at, range(table.row_count)) if row[0] == schema]
    return str(row[list(COLUMNS).index(column)])


def test_keys_sort_pause_detail_and_quit(observer: Observer, segments: list[Segment]) -> None:
    async def use() -> None:
        app = Top(observer, interval=60)
        async with app.run_test(size=(200, 40)) as pilot:
            assert names(app) == ["TopLarge", "TopSmall"]
            await pilot.press("r")
            assert names(app) == ["TopSmall", "TopLarge"]
            await pilot.press(*["s"] * list(COLUMNS).index("rows"))  # most first
            assert names(app) == ["TopLarge", "TopSmall"]
            await pilot.press("down", "enter")
            await pilot.pause()
            assert isinstance(app.screen, Facts)
            facts = str(app.screen.query_one("#facts", Static).render())
            assert "TopSmall" in facts
            assert "before it grows" in facts
            await pilot.press("escape")
            await pilot.pause()
            assert not isinstance(app.screen, Facts)
            await pilot.press("p")
            assert "by rows, descending  |  PAUSED" in text(app, "#status")
            insert(segments[0], "new", pack_row(SMALL, a=1))
            await app.look_again()
            assert cell(app, "TopSmall", "rows") == "2"
            await pilot.press("p")
            await app.look_again()
            assert cell(app, "TopSmall", "rows") == "3"
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(use())


def text(app: Top, name: str) -> str:
    return str(app.query_one(name, Static).render())


def test_a_small_terminal_shows_what_matters_and_scrolls(observer: Observer) -> None:
    async def use() -> None:
        app = Top(observer, interval=60)
        async with app.run_test(size=(80, 24)) as pilot:
            table = app.query_one("#segments", DataTable)
            first = list(table.ordered_columns)[:5]
            assert [str(column.label).split(" ")[0] for column in first] == [
                "schema",
                "lag",
                "newest",
                "readers",
                "dead",
            ]
            assert sum(column.get_render_width(table) for column in first) <= 80
            await app.look_again()
            assert text(app, "#history").startswith("reads/s ▁")
            assert len(text(app, "#history")) <= 80
            await pilot.press("slash", *"small", "enter")
            assert names(app) == ["TopSmall"]
            assert "1 of 2 schemas have 'small'" in text(app, "#status")
            await pilot.press("escape")
            assert names(app) == ["TopLarge", "TopSmall"]
            await pilot.press("question_mark")
            await pilot.pause()
            assert "the columns that do not fit" in str(app.screen.query_one("#facts", Static).render())
            await pilot.press("escape")

    asyncio.run(use())


def test_columns_that_do_not_fit_are_told_and_come_one_by_one(observer: Observer) -> None:
    async def use() -> None:
        app = Top(observer, interval=60)
        async with app.run_test(size=(80, 24)) as pilot:
            table = app.query_one("#segments", SegmentTable)
            await pilot.pause()
            assert (table.scroll_x, table.in_view()[0]) == (0, 2)
            assert f"columns 2 to {table.in_view()[1]} of {len(COLUMNS)}, ← → shows others" in text(app, "#status")
            for first in (3, 4):  # whole columns, each next to the schema
                await pilot.press("right")
                await pilot.pause()
                assert table.in_view()[0] == first
                assert f"columns {first} to " in text(app, "#status")
            await app.look_again()  # a refresh leaves them where they are
            await pilot.pause()
            assert table.in_view()[0] == 4
            await pilot.press("left")
            await pilot.pause()
            assert table.in_view()[0] == 3
            await pilot.press(*["right"] * len(COLUMNS))
            await pilot.pause()
            assert table.in_view()[1] == len(COLUMNS)
            await pilot.press(*["left"] * len(COLUMNS))
            await pilot.pause()
            assert table.scroll_x == 0
            await pilot.resize_terminal(300, 24)
            await pilot.pause()
            assert "columns" not in text(app, "#status")

    asyncio.run(use())


def test_the_question_mark_helps_in_a_detail_too(observer: Observer) -> None:
    async def use() -> None:
        app = Top(observer, interval=60)
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.press("enter")
            await pilot.pause()
            assert "before it grows" in str(app.screen.query_one("#facts", Static).render())
            assert "?: help" in str(app.screen.query_one(VerticalScroll).border_subtitle)
            await pilot.press("question_mark")
            await pilot.pause()
            assert isinstance(app.screen, Help)
            for key in ("escape", "question_mark"):
                await pilot.press(key)
                await pilot.pause()
                is_help = isinstance(app.screen, Help)
                assert isinstance(app.screen, Facts), "the detail is still there"
                assert is_help == (key == "question_mark")
            await pilot.press("question_mark", "q", "q")
            await pilot.pause()
            assert not isinstance(app.screen, Facts)

    asyncio.run(use())


def test_rates_are_those_since_the_last_look(observer: Observer, segments: list[Segment]) -> None:
    async def use() -> None:
        app = Top(observer, interval=60)
        async with app.run_test(size=(200, 40)):
            assert cell(app, "TopLarge", "reads/s") == "0"
            for _ in range(5000):
                assemble(segments[1], "id7")
            for _ in range(50):
                assemble_batch(segments[1], ["id7"] * 20)
            await app.look_again()
            assert int(cell(app, "TopLarge", "reads/s").replace(",", "")) > 100
            assert cell(app, "TopLarge", "p50").endswith(("ns", "µs"))
            assert cell(app, "TopSmall", "reads/s") == "0"
            assert cell(app, "TopLarge", "batch p99").endswith(("ns", "µs", "ms"))
            assert "rows read/s" in text(app, "#summary")
            assert "lag" not in text(app, "#summary") + text(app, "#history"), "a word for rows that wait in the log"

    asyncio.run(use())


def test_percentiles_come_from_buckets() -> None:
    assert percentile([0] * 52, 0.5) is None
    times = [0, 0, 98, 0, 2, *[0] * 47]
    assert percentile(times, 0.5) == 40e-9
    assert percentile(times, 0.99) == 80e-9


def test_sparklines_go_from_nothing_to_the_largest() -> None:
    assert sparkline([0, 1, 2, 4]) == "▁▃▅█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""


def test_through_a_real_terminal(registry: SegmentRegistry, tmp_path: Path, segments: list[Segment]) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    environment = {**os.environ, "QUORIN_SHM_DIR": str(tmp_path / "shm"), "TERM": "xterm-256color"}
    words = [sys.executable, "-m", "quorin", "top", "-c", str(tmp_path / "control"), "-i", "0.2"]
    process = subprocess.Popen(words, env=environment, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        wait_for(master, "TopLarge")
        wait_for(master, "detail")  # the keys are in the last line
        os.write(master, b"q")
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            drain(master)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def wait_for(terminal: int, text: str) -> None:
    shown, deadline = "", time.monotonic() + 60
    while text not in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown):
        assert time.monotonic() < deadline, shown
        shown += drain(terminal)


def drain(terminal: int) -> str:
    if not select.select([terminal], [], [], 0.1)[0]:
        return ""
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # The other side is closed.
        return ""
