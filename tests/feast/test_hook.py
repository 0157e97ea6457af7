"""The short name ``type: quorin``, each time in a Python of its own with a site directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import feast
import pytest

import feast_quorin

PACKAGE = Path(feast_quorin.__file__).parent
PTH = PACKAGE / "quorin_feast.pth"
SITE_PACKAGES = Path(feast.__file__).parent.parent
TIMEOUT_SECONDS = 300
READ_CONFIG = """
    from feast.repo_config import get_online_config_from_type
    print(get_online_config_from_type("quorin").__name__)
"""


@pytest.fixture
def site_dir(tmp_path: Path) -> Path:
    """A directory as site-packages is after an installation: both packages and the ``.pth`` file at its root."""
    for package in (PACKAGE, PACKAGE.parent / "quorin"):
        (tmp_path / package.name).symlink_to(package)
    shutil.copy(PTH, tmp_path)
    return tmp_path


def run(site_dir: Path, code: str, *, before: str = "", feast_too: bool = True) -> subprocess.CompletedProcess[str]:
    """Start Python, treat ``site_dir`` as site-packages after running ``before``, then run ``code``."""
    head = ["import site, sys", textwrap.dedent(before), f"site.addsitedir({str(site_dir)!r})"]
    if feast_too:
        head.insert(1, f"sys.path.append({str(SITE_PACKAGES)!r})")
    script = "\n".join([*head, textwrap.dedent(code)])
    flags = ["-I", "-S", "-O"]  # -O as in QUICK_IMPORT, which -I keeps out
    command = [sys.executable, *flags, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)


def test_the_short_name_works_with_the_hook_also_when_it_is_installed_twice_and_reloaded(site_dir: Path) -> None:
    code = """
        import importlib, feast_quorin.hook as hook
        del sys.modules["feast.repo_config"]
        importlib.reload(hook)
        hook.install(); hook.install()
        print(sum(getattr(f, "__module__", "") == "feast_quorin.hook" for f in sys.meta_path))
        import feast.repo_config as module
        importlib.reload(module)
        print(module.ONLINE_STORE_CLASS_FOR_TYPE["quorin"])
    """
    done = run(site_dir, textwrap.dedent(READ_CONFIG) + textwrap.dedent(code))
    assert done.stdout == "QuorinOnlineStoreConfig\n1\nfeast_quorin.QuorinOnlineStore\n", done.stderr


def test_without_the_hook_the_short_name_is_unknown_and_the_class_path_works(site_dir: Path) -> None:
    (site_dir / PTH.name).unlink()
    code = """
        from feast.errors import FeastOnlineStoreInvalidName
        from feast.repo_config import get_online_config_from_type
        try:
            get_online_config_from_type("quorin")
        except FeastOnlineStoreInvalidName:
            print("unknown")
        print(get_online_config_from_type("feast_quorin.QuorinOnlineStore").__name__)
    """
    done = run(site_dir, code)
    assert done.stdout == "unknown\nQuorinOnlineStoreConfig\n", done.stderr


def test_a_python_that_has_imported_feast_already_gets_the_name(site_dir: Path) -> None:
    done = run(site_dir, READ_CONFIG, before="import feast.repo_config")
    assert done.stdout == "QuorinOnlineStoreConfig\n", done.stderr


def test_a_python_without_feast_notices_nothing(site_dir: Path) -> None:
    code = """
        import json
        try:
            import feast
        except ModuleNotFoundError as error:
            print(error.name)
        try:
            import feast.repo_config
        except ModuleNotFoundError as error:
            print(error.name)
    """
    done = run(site_dir, code, feast_too=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "feast\nfeast\n", "")


def test_a_feast_that_differs_is_left_alone(site_dir: Path) -> None:
    (site_dir / "feast").mkdir()
    (site_dir / "feast" / "__init__.py").touch()
    (site_dir / "feast" / "repo_config.py").write_text("ONLINE_STORE_CLASS_FOR_TYPE = ('other',)\n")
    done = run(site_dir, "import feast.repo_config as m; print(m.ONLINE_STORE_CLASS_FOR_TYPE)", feast_too=False)
    assert (done.stdout, done.stderr) == ("('other',)\n", "")


def test_the_hook_imports_nothing_else_and_prints_nothing(site_dir: Path) -> None:
    # Python 3.13 itself loads a codec when it reads a .pth file.
    code = "print(sorted(name for name in set(sys.modules) - before if not name.startswith('encodings')))"
    done = run(site_dir, code, before="before = set(sys.modules)", feast_too=False)
    assert (done.stdout, done.stderr) == ("['feast_quorin', 'feast_quorin.hook']\n", "")


def test_nothing_is_left_once_the_files_are_gone(site_dir: Path) -> None:
    (site_dir / PTH.name).unlink()
    (site_dir / "feast_quorin").unlink()
    done = run(site_dir, "print([f for f in sys.meta_path if 'quorin' in repr(f)])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_pth_file_is_one_line_that_starts_with_import() -> None:
    lines = PTH.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("import ")
    assert os.linesep == "\n"
