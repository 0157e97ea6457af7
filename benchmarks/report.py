"""Tables as Markdown, put between two marks of a document, so that its figures are those that were measured last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table


def put(document: Path, name: str, machine: str, tables: Sequence[Table]) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`.

    Raises ValueError if the document has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = document.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{document} has no place for {name!r}: expected the lines {begin} and {end}")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    parts = [f"Measured on {machine}.", *(markdown(table) for table in tables)]
    document.write_text(f"{before}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{after}")


def markdown(table: Table) -> str:
    """A table of rich as a table of Markdown, its title above it in bold."""
    columns = [[str(column.header), *(str(cell) for cell in column.cells)] for column in table.columns]
    head, *rows = (list(row) for row in zip(*columns, strict=True))
    rule = [":---" if column.justify == "left" else "---:" for column in table.columns]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
    return "\n".join([f"**{table.title}**", "", *lines])
