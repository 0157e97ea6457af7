"""Code of a document, run; what a comment behind an expression shows is compared with what the expression gives."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

_SHOWN_BELOW = ("{", "[", "array(")
_NAMES = {"array": np.array, "float32": np.float32, "nan": np.nan}


def sections(document: Path) -> list[tuple[str, str, str]]:
    """The code blocks of a document: what the comment ``<!-- ... -->`` right before each says, language, code."""
    found = re.findall(r"^(?:<!-- ([^\n]+) -->\n)?```(\w+)\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
    return [(marker, language, block) for marker, language, block in found]


def blocks(document: Path, language: str, marker: str = "") -> list[str]:
    """The blocks of a language that have that comment, or none, before them."""
    return [block for *which, block in sections(document) if which == [marker, language]]


def run_shown(block: str, names: dict[str, Any]) -> int:
    """Run a block in ``names``, check each expression that has a comment against it, and give their number.

    The comment stands behind the expression, or alone on the next line if it begins as a dictionary, list or array. It
    is Python, in which the program's own names are known.
    """
    tree = _Shows(_comments(block)).visit(ast.parse(block))
    checked: list[str] = []

    def check(value: Any, shown: str) -> None:
        _assert_same(value, eval(shown, names | _NAMES), shown)  # noqa: S307
        checked.append(shown)

    names["_check"] = check
    exec(compile(ast.fix_missing_locations(tree), "<document>", "exec"), names)  # noqa: S102
    return len(checked)


class _Shows(ast.NodeTransformer):
    """Hands the value of each expression that has a comment to ``_check``."""

    def __init__(self, comments: dict[int, tuple[bool, str]]) -> None:
        self._comments = comments

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        line = node.end_lineno or node.lineno
        _, shown = self._comments.get(line, (False, ""))
        alone, below = self._comments.get(line + 1, (False, ""))
        if not shown and alone and below.startswith(_SHOWN_BELOW):
            shown = below
        if shown:
            call = ast.Call(ast.Name("_check", ast.Load()), [node.value, ast.Constant(shown)], [])
            return ast.copy_location(ast.Expr(call), node)
        return node


def _comments(block: str) -> dict[int, tuple[bool, str]]:
    """The comments by line: whether nothing stands before them, and their text."""
    tokens = tokenize.generate_tokens(io.StringIO(block).readline)
    return {
        token.start[0]: (token.line.lstrip().startswith("#"), token.string.removeprefix("#").strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _assert_same(value: Any, shown: Any, text: str) -> None:
    if isinstance(shown, np.ndarray):
        np.testing.assert_array_equal(value, shown, err_msg=text, strict=True)
    else:
        assert type(value) is type(shown), f"{value!r} is shown as {text}"
        np.testing.assert_equal(value, shown, err_msg=text)
