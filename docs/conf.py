"""The site: every Markdown file of this directory is a page, and the reference comes from the docstrings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

import quorin
from quorin.cli import app as commands

project = "Quorin"
author = "Quorin contributors"
copyright = author
release = version = quorin.__version__

extensions = ["myst_parser", "notfound.extension", "sphinx.ext.autodoc", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"Quorin {version}"
html_copy_source = False
html_favicon = "drawings/favicon.svg"
html_static_path = ["site.css"]
html_css_files = ["site.css"]

notfound_urls_prefix = ""  # wherever the site is put

myst_enable_extensions = ["substitution"]
myst_heading_anchors = 4  # as GitHub gives headings their anchors
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository; tests/docs/test_docs.py checks each of them
]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}


def ratio(benchmark: str, rival: str, ours: str) -> str:
    """How many times as long a rival takes at the median, in the figures that the page of performance shows too."""
    figures = json.loads((Path(__file__).parent / "figures.json").read_text())[benchmark]["figures"]
    group = figures["reads" if benchmark == "engine" else benchmark]
    return f"{group[rival]['p50'] / group[ours]['p50']:.0f}×"


_FOUR, _FEAST = "4 fields, ", "1 row × 4, int key, to_dict: "
myst_substitutions = {
    "one_row": ratio("engine", f"{_FOUR}random ids: Redis GET", f"{_FOUR}random ids: assemble"),
    "batch": ratio("engine", f"{_FOUR}1,000 random ids: Redis MGET", f"{_FOUR}1,000 random ids: assemble_batch, Arrow"),
    "feast": ratio("feast", f"{_FEAST}feast-redis", f"{_FEAST}feast-quorin"),
}


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("autodoc-skip-member", errors_stand_once)
    app.add_directive("quorin-commands", Commands)


class Commands(SphinxDirective):
    """A section for each command, with what its ``--help`` prints."""

    def run(self) -> list[nodes.Node]:
        """What Sphinx calls."""
        return [self.section(path) for path in command_paths(get_command(commands))]

    def section(self, path: tuple[str, ...]) -> nodes.section:
        """The section of one command."""
        environment = {"TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
        printed = CliRunner().invoke(commands, [*path, "--help"], prog_name="quorin", env=environment).output
        title = " ".join(("quorin", *path))
        section = nodes.section(ids=[nodes.make_id(title)], names=[title])
        section += nodes.title("", "", nodes.literal(title, title))
        lines = (line.rstrip() for line in printed.strip("\n").splitlines())
        section += nodes.literal_block("", "\n".join(lines), language="text")
        return section


def command_paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words after ``quorin`` of every command, its own first, then those of its subcommands by name."""
    yield path
    if isinstance(command, TyperGroup):
        for name, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield from command_paths(inner, (*path, name))


def errors_stand_once(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Errors are described in ``quorin.errors``, and not again in the modules that offer them too."""
    elsewhere = app.env.temp_data.get("autodoc:module") != "quorin.errors"
    return True if elsewhere and getattr(member, "__module__", "") == "quorin.errors" else None
