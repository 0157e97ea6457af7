"""The site: every Markdown file of this directory is a page, and the reference comes from the docstrings."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

import quorin

project = "Quorin"
author = "Quorin contributors"
copyright = author
release = version = quorin.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "Quorin"
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]

myst_heading_anchors = 4  # as GitHub gives headings their anchors
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository; tests/docs/test_docs.py checks each of them
]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("autodoc-skip-member", errors_stand_once)


def errors_stand_once(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Errors are described in ``quorin.errors``, and not again in the modules that offer them too."""
    elsewhere = app.env.temp_data.get("autodoc:module") != "quorin.errors"
    return True if elsewhere and getattr(member, "__module__", "") == "quorin.errors" else None
