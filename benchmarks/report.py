"""Tables as Markdown, put between two marks of a document, so that its figures are those that were measured last."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks import machine, measuring

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def put(document: Path, name: str, where: str, tables: Sequence[Table]) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`.

    Raises ValueError if the document has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = document.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{document} has no place for {name!r}: expected the lines {begin} and {end}")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    parts = [f"Measured on {where}.", *(markdown(table) for table in tables)]
    document.write_text(f"{before}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{after}")


def keep(
    arguments: Namespace, name: str, where: dict[str, Any], figures: dict[str, Any], tables: Sequence[Table]
) -> None:
    """Write machine and figures to the file of `--json`, and tables into the document of `--docs`, where given."""
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": where, **figures}, indent=2) + "\n")
    if arguments.docs:
        put(arguments.docs, name, machine.one_line(where), tables)


def against_plain(title: str, figures: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each of ``figures``, named ``case|way``, beside the same case read plainly, whose way is empty."""
    table = Table(title=title, title_justify="left")
    for column in ("read", "asks for", "p50", "p99", "p50 against without"):
        table.add_column(column, justify="right" if column.startswith("p") else "left")
    for name, row in figures.items():
        case, _, way = name.partition("|")
        ratio = row["p50"] / figures[f"{case}|"]["p50"]
        shown = f"{100 * (ratio - 1):+.1f} %" if way else ""
        table.add_row(case, way, measuring.duration(row["p50"]), measuring.duration(row["p99"]), shown)
    return table


def markdown(table: Table) -> str:
    """A table of rich as a table of Markdown, its title above it in bold."""
    columns = [[str(column.header), *(str(cell) for cell in column.cells)] for column in table.columns]
    head, *rows = (list(row) for row in zip(*columns, strict=True))
    rule = [":---" if column.justify == "left" else "---:" for column in table.columns]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
    return "\n".join([f"**{table.title}**", "", *lines])
