"""The document of figures: what was measured last is one JSON file, and all tables and pictures are drawn from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import pictures, report, summary

PAGE, FIGURES, PICTURES = "performance.md", "figures.json", "pictures"


def update(directory: Path, entries: dict[str, Any]) -> None:
    """Put new entries into the figures, keep the others, and write page and pictures again.

    Raises ValueError if the page has no place for an entry.
    """
    path = directory / FIGURES
    figures = json.loads(path.read_text()) if path.exists() else {}
    figures |= entries
    figures = dict(sorted(figures.items()))
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    page = directory / PAGE
    page.write_text(render(page.read_text(), figures))
    (directory / PICTURES).mkdir(exist_ok=True)
    for name, drawn in pictures.draw_all(figures).items():
        (directory / PICTURES / name).write_text(drawn)


def render(text: str, figures: dict[str, Any]) -> str:
    """The page with every entry's machine, pictures and tables in its place; the same figures give the same page."""
    for mark, entry in figures.items():
        section(text, mark)  # Before anything is drawn for it.
        text = with_section(text, mark, _body(mark, entry))
    if f"<!-- {summary.MARK} -->" in text:
        text = with_section(text, summary.MARK, f"\n{report.markdown(summary.table(figures))}\n")
    return text


def with_section(text: str, mark: str, body: str) -> str:
    """The page with another body between a mark's two lines. Raises ValueError where they are missing."""
    section(text, mark)
    before, _, rest = text.partition(f"<!-- {mark} -->")
    return before + place(mark, body) + rest.partition(f"<!-- /{mark} -->")[2]


def section(text: str, mark: str) -> str:
    """What stands between a mark's two lines, without them. Raises ValueError where they are missing."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if begin not in text or end not in text:
        raise ValueError(f"no place for {mark!r}: expected the lines {begin} and {end}")
    return text.partition(begin)[2].partition(end)[0].removeprefix("\n").removesuffix("\n")


def place(mark: str, body: str) -> str:
    """A body between its marks."""
    return f"<!-- {mark} -->\n{body}\n<!-- /{mark} -->"


def _body(mark: str, entry: dict[str, Any]) -> str:
    tables = "\n".join(entry["tables"]).strip()
    measured, _, rest = tables.partition("\n")
    if entry["options"]:
        measured += f" A short run: `{entry['options']}`."
    shown = [
        f"![{picture.title}]({PICTURES}/{name})"
        for name, picture in pictures.PICTURES.items()
        if picture.mark == mark and picture.drawable(entry["figures"])
    ]
    return "\n\n".join(["", measured, *shown, rest.strip()]).removeprefix("\n") + "\n"
