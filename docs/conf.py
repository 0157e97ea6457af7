"""The site: every Markdown file of this directory is a page, and the reference comes from the docstrings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from notfound.utils import replace_uris
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.core import TyperGroup
from typer.main import get_command

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
html_domain_indices = False  # the reference lists the modules
html_favicon = "drawings/favicon.svg"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).parent / "scorer.js")
pygments_dark_style = "github-dark"  # Furo's own underlines names, as if they were links

notfound_urls_prefix = "/"  # the site is at the root of its host; else -D notfound_urls_prefix=/there/

myst_enable_extensions = ["substitution"]
myst_heading_anchors = 4  # as GitHub gives headings their anchors
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository; tests/docs/test_docs.py checks each of them
]

nitpicky = True  # a reference that leads nowhere is an error
nitpick_ignore_regex = [
    ("py:class", ".*"),  # annotations name types of other libraries and of internal modules
    ("py:attr", ".*"),  # attributes stand in the text of their class
    ("py:exc", "ConfigError|InvalidRequestError|HydrationConflictError"),  # two internal ones and an alias
    ("py:.*", r"(quorin\.engine|feast_quorin)\..*"),  # internal modules have no page
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
    app.connect("autodoc-skip-member", leave_out)
    app.connect("doctree-resolved", lead_back)
    app.add_directive("quorin-commands", Commands)


class Commands(SphinxDirective):
    """A section for each command, with what its ``--help`` prints."""

    def run(self) -> list[nodes.Node]:
        """What Sphinx calls."""
        return [section_of(title, printed) for title, printed in helps(get_command(commands), "quorin")]


def section_of(title: str, printed: str) -> nodes.section:
    """The section of one command."""
    section = nodes.section(ids=[nodes.make_id(title)], names=[title])
    section += nodes.title("", "", nodes.literal(title, title))
    lines = (line.rstrip() for line in printed.strip("\n").splitlines())
    section += nodes.literal_block("", "\n".join(lines), language="text")
    return section


def helps(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """Name and help of a command, then those of its subcommands by name."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, max_content_width=80)
    yield context.command_path, command.get_help(context)
    if isinstance(command, TyperGroup):
        for word, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield from helps(inner, word, context)


def lead_back(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """The page that stands for missing ones is shown at any path, so its links are absolute."""
    if docname == app.config.notfound_pagename:
        replace_uris(app, doctree, nodes.reference, "refuri")


def leave_out(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Errors are described in ``quorin.errors``, and not again in the modules that offer them too; fields of named
    tuples are among the parameters.
    """
    elsewhere = app.env.temp_data.get("autodoc:module") != "quorin.errors"
    is_error = elsewhere and getattr(member, "__module__", "") == "quorin.errors"
    return True if is_error or (getattr(member, "__doc__", "") or "").startswith("Alias for field number") else None
