"""The rules that no single test of behaviour would notice: floors, leftovers, imports that do too much."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PUBLIC = {
    "schema",
    "shm",
    "layout",
    "serving",
    "assembly",
    "pool",
    "wal",
    "wal_consumer",
    "offline",
    "hydration",
    "vector",
    "evolution",
    "urls",
    "watchdog",
    "snapshot",
    "metrics",
    "logging",
    "errors",
}
MAX_LINES = 500
SOURCES = sorted(path for name in ("quorin", "feast_quorin") for path in (ROOT / name).rglob("*.py"))
TRACKED = [
    ROOT / name for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n") if name
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def test_floors_hold():
    order = floors()
    wrong = [
        f"{name} imports {imported}"
        for name, path in MODULES.items()
        for imported in own_imports(path)
        if unit(imported, order) != unit(name, order) and place(imported, order) >= place(name, order)
    ]
    assert wrong == [], "\n".join(wrong)


def test_the_table_of_floors_names_every_module_and_no_other():
    order = floors()
    assert sorted({unit(name, order) for name in MODULES if name != "quorin"}) == sorted(order)


def test_packages_hold_no_cycles():
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in finished and name in MODULES:
            for imported in own_imports(MODULES[name], at_import=True):
                visit(imported, (*path, name))
            finished.add(name)

    for name in MODULES:
        visit(name, ())


def test_quorin_does_not_know_feast():
    wrong = [
        (name, imported)
        for name, path in MODULES.items()
        for imported in imports(path, for_types=True)
        if name.startswith("quorin") and imported.partition(".")[0] in ("feast", "feast_quorin")
    ]
    assert wrong == []


def test_the_plugin_uses_public_names_only():
    public = {f"quorin.{name}" for name in PUBLIC} | {"quorin"}
    wrong = [
        (name, imported)
        for name, path in MODULES.items()
        for imported in own_imports(path)
        if name.startswith("feast_quorin") and imported.startswith("quorin") and imported not in public
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("numba", "quorin/kernels/"),
        ("llvmlite", "quorin/kernels/"),
        ("mmap", "quorin/mapping.py"),
        ("redis", "quorin/backend/redis"),
        ("sqlite3", "quorin/backend/embedded"),
    ],
)
def test_one_place_imports(library, allowed):
    users = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if library in {imported.partition(".")[0] for imported in imports(path)}
    ]
    assert users
    assert [user for user in users if not user.startswith(allowed)] == []


def test_one_place_holds_scripts_and_tables():
    words = re.compile(r"redis\.call|CREATE TABLE")
    assert [module_name(path) for path in SOURCES if words.search(path.read_text())] == ["quorin.keys"]


def test_nothing_is_left_to_do():
    words = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"])
    assert found(rf"\b({words})\b") == []


def test_no_path_of_a_machine():
    assert found(r"(?<![\w.])/(home|root|Users|work|mnt|opt)/\w+") == []


def test_no_test_is_skipped():
    pattern = re.compile(
        r"pytest\.(skip|xfail|importorskip)|mark\.(skip|xfail)|unittest|\bmock\b|monkeypatch\.setattr\(redis"
    )
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    assert [path.name for path in files if pattern.search(path.read_text())] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_name(path))
def test_module_fits_a_sitting(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES


def test_importing_only_defines_names():
    modules = [name for name in MODULES if name.startswith("quorin") and not name.startswith("quorin.kernels")]
    script = f"""
import importlib, logging, sys, threading
before = (threading.active_count(), list(logging.root.handlers), logging.root.level)
for name in {modules!r}:
    importlib.import_module(name)
assert before == (threading.active_count(), logging.root.handlers, logging.root.level)
print(sorted({{"numba", "pandas", "feast"}} & sys.modules.keys()))
"""
    assert python(script) == "[]\n"


def test_schemas_need_only_numpy():
    script = "import quorin.schema, sys; print(sorted({'numba', 'redis', 'pyarrow'} & sys.modules.keys()))"
    assert python(script) == "[]\n"


def floors() -> list[str]:
    """The modules of the table in docs/architecture.md, in its order."""
    rows = re.findall(r"^\| \d \| (.*) \|$", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)
    return re.findall(r"`([\w.]+)`", " ".join(rows))


def unit(name: str, order: list[str]) -> str:
    """The entry of the table that a module belongs to: itself, or its package."""
    return next((entry for entry in order if name == entry or name.startswith(f"{entry}.")), name)


def place(name: str, order: list[str]) -> int:
    return order.index(unit(name, order)) if unit(name, order) in order else -1


def own_imports(path: Path, *, at_import: bool = False) -> set[str]:
    """The modules of this project that a file imports at run time, wherever in it; or only when it is imported."""
    names = set()
    for imported in imports(path, at_import=at_import):
        name = imported
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            names.add(name)
    return names - {"quorin"} - {module_name(path)}


@cache
def imports(path: Path, *, for_types: bool = False, at_import: bool = False) -> list[str]:
    return list(_imports(ast.parse(path.read_text()), for_types=for_types, at_import=at_import))


def _imports(node: ast.AST, *, for_types: bool, at_import: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used here"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
        for child in node.orelse:
            yield from _imports(child, for_types=for_types, at_import=at_import)
    elif not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, for_types=for_types, at_import=at_import)


def found(pattern: str) -> list[str]:
    """Every line of a tracked text file that a pattern matches."""
    compiled = re.compile(pattern)
    hits = []
    for path in TRACKED:
        if path.exists() and path.suffix != ".parquet":
            text = path.read_text(errors="replace")
            lines = enumerate(text.splitlines(), start=1)
            hits += [
                f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in lines if compiled.search(line)
            ]
    return hits


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
