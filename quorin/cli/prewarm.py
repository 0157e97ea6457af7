"""``quorin prewarm``: compile the kernels before a process needs them."""

from __future__ import annotations

import typer

from quorin.cli.output import Json, print_json
from quorin.engine.words import counted
from quorin.errors import QuorinError


class KernelsNotKeptError(QuorinError, OSError):
    """Kernels were compiled, but other processes cannot load them."""


def prewarm(as_json: Json = False) -> None:
    """Compile all kernels for this machine's processor.

    Keeps them, so that no later process has to compile. For images and init containers. They are kept in
    `NUMBA_CACHE_DIR`, else `XDG_CACHE_HOME`, else `~/.cache`; other processes need the same setting, the same versions
    of Python and Numba, and a processor of the same type.

    Examples:
        quorin prewarm
        XDG_CACHE_HOME=/var/cache quorin prewarm --json

    Exit codes: 0 the kernels are kept, 1 they could not be kept, 2 wrong usage.
    """
    from quorin.engine import kernels
    from quorin.engine.kernels import cache

    loadings = kernels.load().values()
    directory = cache.directory()
    if not cache.keeps():
        raise KernelsNotKeptError(f"every process compiles anew: cannot keep kernels in {directory}")
    if as_json:
        compiled = [loading for loading in loadings if loading.was_compiled]
        print_json({
            "kernels": len(loadings),
            "compiled": len(compiled),
            "compiled_seconds": sum(loading.seconds for loading in compiled),
            "seconds": sum(loading.seconds for loading in loadings),
            "directory": str(directory),
        })  # fmt: skip
    else:
        typer.echo(f"{counted(len(loadings), 'kernel')}: {kernels.described(loadings)}, kept in {directory}")
