from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from quorin import layout
from quorin.engine.kernels import _KERNELS
from quorin.engine.kernels.cache import digest, sources
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry

ROOT = Path(__file__).parents[3]
READ = """
import numpy as np
from quorin.engine import kernels
offsets = np.array([0, 3, 10], np.int32)
print(kernels.longest_id(offsets.ctypes.data, 4, 2))
"""
"""Uses one small kernel, made of two files."""
BEFORE = "import os, resource\n"


def run(cache: Path | None, before: str = "", *, path: Path = ROOT, **environment: str) -> tuple[str, str]:
    """What a process printed that used a kernel: its answer, and what it logged."""
    known = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    if cache is not None:
        known["XDG_CACHE_HOME"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + before + READ],
        env=known | {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        cwd=path if path.is_dir() else path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "quorin" / "kernels").iterdir())


def test_a_process_keeps_what_it_compiled_and_nothing_else(tmp_path: Path) -> None:
    assert run(tmp_path) == ("7", "")
    [file] = kept(tmp_path)
    assert file.name.startswith("longest_id-")
    inode = file.stat().st_ino
    assert run(tmp_path) == ("7", "")
    assert file.stat().st_ino == inode, "compiled again though it was kept"


def test_a_first_read_compiles_one_kernel(tmp_path: Path) -> None:
    schema = make_schema("First", [FeatureField("number", dtype.int64)])
    registry = SegmentRegistry(tmp_path / "control", shm_dir=tmp_path)
    with registry.create(schema, capacity=10) as segment:
        layout.insert(segment, "id", layout.pack_row(schema, number=5))
    registry.backend.close()
    script = f"""
from quorin import assembly
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
schema = make_schema("First", [FeatureField("number", dtype.int64)])
with SegmentRegistry({str(tmp_path / "control")!r}, shm_dir={str(tmp_path)!r}).open_current(schema) as segment:
    print(assembly.assemble(segment, "id"))
raise SystemExit
"""
    assert run(tmp_path / "cache", script) == ("[5.]", "")
    assert [file.name.partition("-")[0] for file in kept(tmp_path / "cache")] == ["read_one"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the kernel. Tests change copies of it."""
    cache = tmp_path_factory.mktemp("filled")
    assert run(cache) == ("7", "")
    return cache


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b"garbage " * 5_000, "cut", "flipped"])
def test_a_damaged_file_is_replaced(filled: Path, tmp_path: Path, damage: bytes | str) -> None:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    [file] = kept(tmp_path)
    whole = file.read_bytes()
    middle = len(whole) // 2
    if damage == "cut":
        damage = whole[:-100]
    elif damage == "flipped":
        damage = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes(damage)
    answer, log = run(tmp_path)
    assert answer == "7"
    assert log.count("kernel_cache_damaged") == 1
    assert kept(tmp_path) == [file]
    assert run(tmp_path) == ("7", "")


STRANGER = """
import structlog
from quorin.engine import kernels
os.environ["XDG_CACHE_HOME"] = {elsewhere!r}
kernels.load(("event_times",))  # of the same module: Python and structlog may lie where the other user can't read
del os.environ["XDG_CACHE_HOME"]
os.setgid(54321)
os.setuid(54321)
"""
"""Become a user without an entry in passwd, as in containers."""


@pytest.mark.parametrize("home", [None, "/", "/nonexistent", "/dev/null", "/proc"])
def test_without_a_home_that_can_be_written_every_process_compiles(home: str | None, tmp_path: Path) -> None:
    root = os.getuid() == 0
    if home is None and not root:
        return  # this user has a home in passwd
    before = STRANGER.format(elsewhere=str(tmp_path)) if root else ""
    answer, log = run(None, before, **({} if home is None else {"HOME": home}))
    assert answer == "7"
    assert log.count("kernel_cache_unavailable") == 1
    assert "XDG_CACHE_HOME" in log


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    answer, log = run(tmp_path, "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n")
    assert answer == "7"
    assert log.count("kernel_cache_unavailable") == 1
    assert kept(tmp_path) == []
    assert run(tmp_path) == ("7", "")
    assert len(kept(tmp_path)) == 1


def test_two_processes_may_compile_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", READ], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=300)[0] for process in both] == ["7\n", "7\n"]
    assert len(kept(tmp_path)) == 1


def test_a_change_in_any_source_of_a_kernel_compiles_it_anew(tmp_path: Path) -> None:
    """``longest_id`` is in measure.py and takes ``load_offset`` from memory.py."""
    package = tmp_path / "code"
    shutil.copytree(ROOT / "quorin", package / "quorin", ignore=shutil.ignore_patterns("__pycache__"))
    cache = tmp_path / "cache"
    assert run(cache, path=package)[0] == "7"
    memory = package / "quorin" / "engine" / "kernels" / "memory.py"
    text = memory.read_text()
    memory.write_text("# a comment more\n" + text)
    assert run(cache, path=package)[0] == "7"
    assert len(kept(cache)) == 1, "a comment compiles nothing"
    changed, times = re.subn(r"return load_i32\(offsets \+ 4 \* i\)", "return 2 * load_i32(offsets + 4 * i)", text)
    assert times == 1
    memory.write_text(changed)
    assert run(cache, path=package)[0] == "14"
    assert len(kept(cache)) == 2


def test_optimized_python_uses_the_same_kernels() -> None:
    """``python -O`` strips asserts: in a source of a kernel, they would give it another digest."""
    modules = [f"quorin.engine.kernels.{module}" for module in sorted({entry[0] for entry in _KERNELS.values()})]
    script = f"from quorin.engine.kernels.cache import digest; print([digest(module) for module in {modules!r}])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-O", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{[digest(module) for module in modules]}\n"


def test_the_sources_of_a_kernel_are_all_that_it_imports() -> None:
    found = {
        module: set(sources(f"quorin.engine.kernels.{module}")) for module in {entry[0] for entry in _KERNELS.values()}
    }
    assert {
        "quorin.engine.format.abi",
        "quorin.engine.format.segment",
        "quorin.engine.format.hashing",
        "quorin.schema",
        "quorin.engine.kernels.read",
    } <= found["write"]
    assert "quorin.engine.kernels.write" not in found["read"]
    assert "quorin.engine.kernels.staging" in found["write"]


@pytest.mark.parametrize("kind", ["zip", "bytecode"])
def test_a_package_without_source_files_works(tmp_path: Path, kind: str) -> None:
    package = tmp_path / "code"
    shutil.copytree(ROOT / "quorin", package / "quorin", ignore=shutil.ignore_patterns("__pycache__"))
    if kind == "bytecode":
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", str(package)], check=True)
        for source in package.rglob("*.py"):
            source.unlink()
    else:
        with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
            for source in package.rglob("*.py"):
                archive.write(source, source.relative_to(package))
        shutil.rmtree(package)
        package = tmp_path / "code.zip"
    cache = tmp_path / "cache"
    assert run(cache, "import quorin; print(quorin.__file__)\n", path=package)[0].splitlines()[-1] == "7"
    assert run(cache, path=package) == ("7", "")
    assert len(kept(cache)) == 1


def test_numba_without_compilation_is_refused_in_words(tmp_path: Path) -> None:
    script = "try:\n import quorin.engine.kernels.read\nexcept Exception as error: print(type(error).__name__, error)"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("QuorinError NUMBA_DISABLE_JIT is set")
