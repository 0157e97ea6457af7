"""The rules that no single test of behaviour would notice: circles, leftovers, imports that do too much."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PUBLIC = {path.stem for path in (ROOT / "quorin").glob("*.py") if not path.stem.startswith("__")}
"""A file at the top of ``quorin/`` is public, a folder is internal."""
MAX_MODULE_LINES, MAX_CLASS_LINES, MAX_FUNCTION_LINES = 400, 250, 70
# What is over a limit, with its length. These lists only shrink: an entry that is within the limit must be removed.
LONG_MODULES: dict[str, int] = {}
LONG_CLASSES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
CIRCLES: set[frozenset[str]] = set()
"""Modules that import each other, type-only imports included; modules by their last name. This list only shrinks."""
REACH_INS = [
    "segment._view",
    "self._segment._view",
    "self._pool._lend",
    "self._pool._take_back",
    "other._content",
    "response._resolved",
    "CompileResult._rebuild",
    "dispatcher._cache",
    "engine._get_backend",
    "online_response._convert_uuids_for_arrow",
    "result._reduce",
    "response._proto",
    "response._reads",
    "response._to_proto",
    "text._is_ascii",
    "text._length",
    "made._environ",
    "OnlineStore._build_feature_types",
    "feature_server._get_features",
    "metrics._config",
    "utils._apply_aggregations_to_response",
    "utils._get_online_request_context",
    "utils._get_table_entity_values",
    "utils._get_unique_entities",
    "utils._get_unique_entities_from_values",
    "utils._parse_feature_ref",
]
"""Private names of other objects that are used: Quorin's own, numba's and Rich's, Feast's. This list only shrinks."""
CALLED_FROM_OUTSIDE = [
    "build_output_nodes",
    "_absolute",
    "_age_limits",
    "load_overload",
    "save_overload",
    "_positive",
    "_not_empty",
    "_no_url",
    "_directory_or_url",
    "_http_url",
    "_peer_urls",
    "_redis_form",
    "_one_clear_error",
    "BINDINGS",
    "DEFAULT_CSS",
    "TITLE",
    "ENABLE_COMMAND_PALETTE",
    "on_mount",
    "on_resize",
    "on_segment_table_scrolled",
    "action_cursor_left",
    "action_cursor_right",
    "on_unmount",
    "on_data_table_row_selected",
    "action_sort",
    "action_reverse",
    "action_pause",
    "log_message",
    "daemon_threads",
    "address_family",
    "action_filter",
    "action_help",
    "on_input_changed",
    "on_input_submitted",
    "on_key",
    "_repr_html_",
]
"""Names that nothing here uses, because a library calls them: Feast, pydantic, Typer, Textual, numba, asyncio, wsgiref.
"""
SOURCES = sorted(path for name in ("quorin", "feast_quorin") for path in (ROOT / name).rglob("*.py"))
TRACKED = [
    ROOT / name for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n") if name
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def test_quorin_does_not_know_feast():
    wrong = [
        (name, imported)
        for name, path in MODULES.items()
        for imported in imports(path, for_types=True)
        if name.startswith("quorin") and imported.partition(".")[0] in ("feast", "feast_quorin")
    ]
    assert wrong == []


def test_the_page_of_the_architecture_names_every_folder_and_every_public_module():
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {str(path.parent.relative_to(ROOT)) for path in SOURCES} - {"quorin", "quorin/engine"}
    assert set(re.findall(r"^\| `([\w/]+)/` \|", page, flags=re.MULTILINE)) == folders
    assert set(re.findall(r"^\| `quorin\.(\w+)` \|", page, flags=re.MULTILINE)) == PUBLIC


def test_the_top_of_the_package_has_few_entries():
    entries = {path.relative_to(ROOT / "quorin").parts[0] for path in TRACKED if path.is_relative_to(ROOT / "quorin")}
    assert len(entries) <= 25, sorted(entries)


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
        ("numba", "quorin/engine/kernels/"),
        ("llvmlite", "quorin/engine/kernels/"),
        ("mmap", "quorin/engine/memory/file.py"),
        ("redis", "quorin/engine/backend/redis"),
        ("sqlite3", "quorin/engine/backend/sqlite"),
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
    assert [module_name(path) for path in SOURCES if words.search(path.read_text())] == [
        "quorin.engine.backend.growth_keys",
        "quorin.engine.backend.keys",
        "quorin.engine.backend.load_keys",
        "quorin.engine.backend.partition_keys",
    ]


def test_the_hooks_before_a_commit_check_what_ci_checks():
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    checks = [line.removesuffix(" .") for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    checks = [line for line in checks if re.match(r"\.venv/bin/(ruff|mypy)", line)]
    assert [hook["entry"] for hook in local["hooks"]] == checks
    assert {(local["repo"], hook["language"]) for hook in local["hooks"]} == {("local", "system")}


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


def test_modules_classes_and_functions_are_short():
    nodes = [node for path in SOURCES for node in ast.walk(parsed(path))]
    modules = [(module_name(path).rpartition(".")[2], len(path.read_text().splitlines())) for path in SOURCES]
    assert_only_shrinks(modules, MAX_MODULE_LINES, LONG_MODULES)
    assert_only_shrinks(lengths(nodes, ast.ClassDef), MAX_CLASS_LINES, LONG_CLASSES)
    assert_only_shrinks(lengths(nodes, ast.FunctionDef, ast.AsyncFunctionDef), MAX_FUNCTION_LINES, LONG_FUNCTIONS)


def test_no_module_is_part_of_a_circle_of_imports():
    """Whatever the place of an import: in a function, at the top, or for type checkers alone."""
    reached = {name: reachable(name) for name in MODULES}
    circles = {
        frozenset(other.rpartition(".")[2] for other in reached[name] if name in reached[other])
        for name in MODULES
        if name in reached[name]
    }
    assert circles == CIRCLES, "\n".join(" <-> ".join(sorted(circle)) for circle in circles ^ CIRCLES)


def test_nothing_reaches_into_another_objects_private_names():
    found = {text for path in SOURCES for text in reach_ins(parsed(path))}
    assert found == set(REACH_INS)


def test_every_name_is_used():
    """A private name by the packages themselves; others also by a test, a document, a benchmark or the example."""
    here = {name for path in SOURCES for name in names_used(parsed(path))}
    files = [path for name in ("tests", "benchmarks", "feature_repo") for path in (ROOT / name).rglob("*.py")]
    others = {name for path in files if path != Path(__file__) for name in names_used(parsed(path))}
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    documented = {word for path in documents for word in re.findall(r"\w+", path.read_text())}
    unused = {
        name
        for path in SOURCES
        for name in names_defined(parsed(path))
        if name not in here and (name.startswith("_") or name not in others | documented)
    }
    assert unused == set(CALLED_FROM_OUTSIDE)


def test_the_kernel_cache_depends_on_every_source_of_a_kernel():
    """What the kernels import, and what that imports, is in the digest that the cache is kept under."""
    from quorin.engine.kernels import cache

    for kernel in (name for name in MODULES if MODULES[name].parent == Path(cache.__file__).parent):
        needed = {kernel, *reachable(kernel, for_types=False)} - {"quorin.errors"}  # names and texts only
        assert needed <= set(cache.sources(kernel)), kernel


def test_importing_only_defines_names():
    modules = [name for name in MODULES if name.startswith("quorin") and not name.startswith("quorin.engine.kernels")]
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


def assert_only_shrinks(found: list[tuple[str, int]], limit: int, known: dict[str, int]) -> None:
    """What is over the limit is known, and no longer than it was; what is known is still over the limit."""
    grown = [(name, lines) for name, lines in found if lines > known.get(name, limit)]
    assert grown == [], f"longer than {limit} lines, or than they were: {grown}"
    over = {name for name, lines in found if lines > limit}
    assert over == set(known), "an entry is within the limit now: remove it from the list"


def lengths(nodes: list[ast.AST], *kinds: type[Any]) -> list[tuple[str, int]]:
    return [(node.name, node.end_lineno - node.lineno + 1) for node in nodes if isinstance(node, kinds)]


@cache
def reachable(name: str, *, for_types: bool = True) -> frozenset[str]:
    """The modules that one imports, and those that they import; the module itself if it is among them."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        new = own_imports(MODULES[waiting.pop()], for_types=for_types) - seen
        seen |= new
        waiting += new
    return frozenset(seen)


def reach_ins(tree: ast.Module) -> Iterator[str]:
    """Private attributes of anything but ``self``, ``cls`` and ``super()``, and private names of other modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()"):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names if is_private(alias.name))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_defined(tree: ast.Module) -> Iterator[str]:
    """The functions, classes, methods, and variables of modules and classes. Python itself calls dunder methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from (name for name in [node.name] if not name.startswith("__"))
        if isinstance(node, ast.Module | ast.ClassDef):
            for part in node.body:
                targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
                names = [name.id for target in targets if target for name in ast.walk(target) if is_stored(name)]
                yield from (name for name in names if not name.startswith("__"))


def is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def names_used(tree: ast.Module) -> Iterator[str]:
    """Every name that is read, imported, or given as a keyword; and every string, which may name something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not is_stored(node):
            yield node.id
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\w+", node.value) if len(node.value) < 200 else ()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def own_imports(path: Path, *, for_types: bool = False) -> set[str]:
    """The modules of this project that a file imports at run time, wherever in it; for type checkers too, if asked; or
    only when it is imported.
    """
    names = set()
    for imported in imports(path, for_types=for_types):
        name = imported
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            names.add(name)
    return names - {"quorin"} - {module_name(path)}


@cache
def imports(path: Path, *, for_types: bool = False) -> list[str]:
    return list(_imports(parsed(path), for_types=for_types))


def _imports(node: ast.AST, *, for_types: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used here"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
        for child in node.orelse:
            yield from _imports(child, for_types=for_types)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, for_types=for_types)


def found(pattern: str) -> list[str]:
    """Every line of a tracked text file that a pattern matches."""
    compiled = re.compile(pattern)
    hits = []
    for path in TRACKED:
        if path.exists() and path.suffix not in (".parquet", ".gz"):
            text = path.read_text(errors="replace")
            lines = enumerate(text.splitlines(), start=1)
            hits += [
                f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in lines if compiled.search(line)
            ]
    return hits


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
