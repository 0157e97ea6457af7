"""How kernels are compiled.

Bounds are not checked and nothing raises: callers validate. A wrapper is compiled only where something calls through
it, since each costs as much as a small kernel: Python calls kernels, only kernels call helpers, nothing calls by
``cfunc``.
"""

from __future__ import annotations

from numba import config, njit

from quorin.errors import QuorinError

if config.DISABLE_JIT:
    raise QuorinError("NUMBA_DISABLE_JIT is set, expected unset or 0: the kernels run only compiled")

_OPTIONS = {"boundscheck": False, "error_model": "numpy", "no_cfunc_wrapper": True}

kernel = njit(**_OPTIONS)
"""Called from Python, keeps the GIL: for calls shorter than giving it back and waiting for it takes."""
unlocked_kernel = njit(nogil=True, **_OPTIONS)
"""Called from Python, releases the GIL."""
helper = njit(no_cpython_wrapper=True, _nrt=False, **_OPTIONS)
"""Called from kernels, compiled once for all kernels of a process. Allocates nothing and counts no references to the
arrays that it takes: numba counts them with atomic instructions wherever an array goes into a branch."""
inlined = njit(inline="always")
"""Becomes a part of each caller before that is compiled.
What takes an array and has branches is a helper instead: a kernel
would count references there. LLVM inlines helpers where that pays."""
