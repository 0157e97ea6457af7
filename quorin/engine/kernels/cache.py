"""Where compiled kernels are kept from one process to the next.

Numba would keep them beside the source, and take them for current as long as that one file has not changed. But kernels
are made of several files, may lie where nobody can write, and should leave nothing behind when the package is
uninstalled. So each is kept as one file in the user's cache directory, under a digest of all that it is made of, and
begins with a digest of its own content. The cache only ever saves time: a process that can't read it or write it
compiles for itself, and says so once.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import os
import pickle
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType

import llvmlite
import numba
from numba.core import config
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from quorin.logging import get_logger

_log = get_logger(__name__)
_DIGEST_BYTES = hashlib.sha256().digest_size
_warned = False


def directory() -> Path | None:
    """Where kernels are kept: in ``NUMBA_CACHE_DIR``, ``XDG_CACHE_HOME`` or ``~/.cache``. None if this user has no
    home.
    """
    home = config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(home or "~/.cache").expanduser().absolute() / "quorin" / "kernels"
    except RuntimeError:
        return None


class KernelCache:
    """The cache of one kernel, with the methods that numba's dispatcher calls.

    ``compiling`` is called before a kernel that is not here is compiled.
    """

    def __init__(self, function: object, compiling: Callable[[], None]) -> None:
        self._compiling = compiling
        self._name = function.__name__
        self._digest = digest(function.__module__)
        self.cache_path = directory()

    def load_overload(self, signature, target_context):
        """The kernel compiled for ``signature``; None if it is not here, or its file is damaged."""
        found = self._load(signature, target_context)
        if found is None:
            self._compiling()
        return found

    def _load(self, signature, target_context):
        target_context.refresh()
        path = self._path(signature, target_context.codegen())
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
            _log.warning("kernel_cache_damaged", path=str(path), effect="compiled anew")
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(content[_DIGEST_BYTES:]))  # noqa: S301 - our own

    def save_overload(self, signature, result):
        """Keep a compiled kernel; other processes see the whole file or none."""
        path = self._path(signature, result.library.codegen)
        if path is None:
            _warn_once(None, "no home directory: neither HOME nor the user's entry in passwd names one")
            return
        content = dumps(result._reduce())
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                aside.write_bytes(hashlib.sha256(content).digest() + content)
                aside.replace(path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
        except OSError as error:
            _warn_once(path.parent, str(error))

    def _path(self, signature, codegen):
        where = directory()
        made_of = (self._digest, signature, numba.__version__, llvmlite.__version__, codegen.magic_tuple())
        key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]
        return where and where / f"{self._name}-{sys.implementation.cache_tag}{sys.abiflags}-{key}"


def keeps() -> bool:
    """Whether all that this process compiled is kept for others."""
    return not _warned


def _warn_once(where: Path | None, reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        effect = "every process compiles anew; set XDG_CACHE_HOME to a directory that can be written"
        _log.warning("kernel_cache_unavailable", directory=where and str(where), reason=reason, effect=effect)


@functools.cache
def digest(module: str) -> str:
    """A digest of the code of :func:`sources`: comments and the place of installation don't change it, nor does ``-O``,
    as long as none of them asserts.
    """
    codes = [_code(name) for name in sources(module)]
    return hashlib.sha256("\n".join(map(_text, codes)).encode()).hexdigest()


@functools.cache
def sources(module: str) -> tuple[str, ...]:
    """The names of the modules that a kernel of ``module`` may be made of: itself and what it imports of this package,
    directly or not.
    """
    found = {module}
    new = [module]
    while new:
        for name in set(_imports(_code(new.pop()))) - found:
            found.add(name)
            new.append(name)
    return tuple(sorted(found))


def _code(module: str) -> CodeType:
    """A module's code, from its loader: there may be no source file, but a zip or bytecode alone."""
    spec = importlib.util.find_spec(module)
    return spec.loader.get_code(module)


def _imports(code: CodeType) -> Iterator[str]:
    module = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            module = instruction.argval
            if module.startswith("quorin."):
                yield module
        elif instruction.opname == "IMPORT_FROM" and _is_module(module, instruction.argval):
            yield f"{module}.{instruction.argval}"


def _is_module(package: str, name: str) -> bool:
    """Whether ``from package import name`` imports a module of ours, not a name that the package defines."""
    if package.partition(".")[0] != "quorin" or importlib.util.find_spec(package).submodule_search_locations is None:
        return False
    return importlib.util.find_spec(f"{package}.{name}") is not None


def _text(code: CodeType) -> str:
    constants = [_text(item) if isinstance(item, CodeType) else _constant(item) for item in code.co_consts]
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars)
    return repr((names, code.co_code, code.co_exceptiontable, constants))


def _constant(item: object) -> str:
    """As ``repr``; but the order of a set differs from one process to the next."""
    return repr(sorted(map(repr, item)) if isinstance(item, frozenset) else item)
