"""Feast's private names are used in one module, so that an upgrade of Feast is one diff."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import feast_quorin
from feast_quorin import feast_private
from feast_quorin.feast_private import OVERRIDDEN, RequestContext

PACKAGE = Path(feast_quorin.__file__).parent
# Not private, in spite of the underscore: named tuples have these.
NAMED_TUPLE = {"_asdict", "_fields", "_replace", "_make"}
FOUND_IN_FEAST = {
    "from feast.utils import _f": {"_f"},
    "from feast._private import f": {"_private"},
    "import feast._private": {"_private"},
    "def f(service): return service._pending": {"_pending"},
    "from feast import utils\nutils._f()": {"_f"},
    "class A(B):\n    def f(self): return self._inherited": {"_inherited"},
    "getattr(service, '_pending')": {"_pending"},
    "class A:\n    def __init__(self): self._own = 1\n    def f(self): return self._own.__class__": set(),
    "class A:\n    __slots__ = ('_own',)\n    def f(self): return self._own": set(),
    "import feast_quorin\nfrom feast_quorin.names import _own": set(),
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE and name != "_"


def defined(tree: ast.AST) -> set[str]:
    """The names that a file defines: functions, classes, variables, attributes that it assigns, slots."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Assign) and any(ast.unparse(target) == "__slots__" for target in node.targets):
            names |= {item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)}
    return names


def used(tree: ast.AST) -> Iterator[str]:
    """The private names that a file uses and does not define, and those that it imports from Feast."""
    own = defined(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            paths = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            parts = [path.split(".") for path in paths]
            yield from (name for first, *rest in parts if first == "feast" for name in rest if is_private(name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield str(name.value)


@pytest.mark.parametrize(("source", "names"), FOUND_IN_FEAST.items())
def test_the_check_sees_private_names_of_others(source: str, names: set[str]):
    assert {*used(ast.parse(source))} == names


def test_one_module_uses_private_names_of_feast():
    overridden = {name for names in OVERRIDDEN.values() for name in names}
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = {*used(ast.parse(path.read_text()))} - overridden
        if names and path.name != "feast_private.py":
            found[str(path.relative_to(PACKAGE))] = names
    assert found == {}


@pytest.mark.parametrize(("path", "names"), OVERRIDDEN.items())
def test_feast_has_what_the_plugin_overrides(path: str, names: tuple[str, ...]):
    module, _, name = path.rpartition(".")
    base = getattr(import_module(module), name)
    source = ast.parse(Path(import_module(module).__file__ or "").read_text())
    body = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == name)
    assert [name for name in names if not hasattr(base, name) and name not in defined(body)] == []


def test_only_one_module_knows_the_order_of_the_request_context():
    makers = [path.name for path in PACKAGE.rglob("*.py") if "utils._get_online_request_context" in path.read_text()]
    assert makers == [Path(feast_private.__file__).name]
    assert len(RequestContext._fields) == 9
