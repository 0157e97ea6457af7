"""The compiled kernels: everything that reads or writes rows at full speed. The only package that imports numba.

Kernels take addresses, lengths and flat int64 arrays, and return codes; callers validate before and raise after. Import
this package late, in the function that needs it: it loads numba (about half a second the first time in a process).

Each name of the table below is an attribute of this package: the compiled entry point of a kernel for one signature.
Its first use loads it from the cache (:mod:`quorin.engine.kernels.cache`) or compiles it: a process compiles nothing
that it does not call. Calling an entry point costs a tenth of a call of the numba dispatcher, which inspects the type
of every argument; an argument of another type raises ``TypeError``. A version of numba without ``entry_point`` runs the
dispatcher instead.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from numba import types

from quorin.engine.kernels.announcing import announced
from quorin.engine.kernels.cache import KernelCache
from quorin.engine.words import duration
from quorin.logging import get_logger

_log = get_logger(__name__)

_WORDS = types.Array(types.int64, 1, "C")
_MATRIX = types.Array(types.int64, 2, "C")
_BYTES = types.Array(types.uint8, 1, "C")
_BOOLS = types.Array(types.boolean, 1, "C")
_FLOATS = types.Array(types.float32, 1, "C")
_DOUBLES = types.Array(types.float64, 1, "C")
_INT, _WORD, _TEXT, _FLOAT, _DOUBLE = types.int64, types.uint64, types.unicode_type, types.float32, types.float64

_KERNELS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "assemble_one": ("read", "read_one", (_WORDS, _TEXT, _FLOATS)),
    "read_one": ("read", "read_one", (_WORDS, _TEXT, _BYTES)),
    "read_each": ("read", "read_each", (_WORDS, _TEXT, _BYTES)),
    "read_each_limited": ("read", "read_each_limited", (_WORDS, _TEXT, _BYTES, _INT, _INT)),
    "read_many": ("read", "read_many", (_WORDS, *[_INT] * 5, _BYTES, _BOOLS, _FLOAT, *[_INT] * 3)),
    "gather_values": ("gather", "gather_values", (_INT, _INT, _INT, _WORDS, _INT)),
    "gather_texts": ("gather", "gather_texts", (_INT, _INT, _INT, _WORDS, _WORDS, _INT)),
    "fill_row_float32": ("matrix", "fill_row", (_WORDS, _BYTES, _BYTES, _BOOLS, _INT, _INT, _FLOATS)),
    "fill_row_float64": ("matrix", "fill_row", (_WORDS, _BYTES, _BYTES, _BOOLS, _INT, _INT, _DOUBLES)),
    "fill_rows_float32": ("matrix", "fill_rows", (_WORDS, _BYTES, _BYTES, _BOOLS, _INT, _INT, _FLOATS)),
    "fill_rows_float64": ("matrix", "fill_rows", (_WORDS, _BYTES, _BYTES, _BOOLS, _INT, _INT, _DOUBLES)),
    "scan_rows": (
        "scan",
        "scan_rows",
        (_WORDS, _INT, _INT, _BYTES, _INT, _INT, _WORDS, _BYTES, _BOOLS, _BYTES, _WORDS),
    ),
    "write_decimals": ("decimal", "write_decimals", (_WORDS, _WORDS, _INT)),
    "event_times": ("measure", "event_times", (_WORDS, _INT, _INT, _WORDS)),
    "longest_id": ("measure", "longest_id", (_INT, _INT, _INT)),
    "mark_ids": ("measure", "mark_ids", (_INT, _INT, _INT, _BYTES)),
    "partitions_of": ("partitions", "partitions_of", (*[_INT] * 4, _BYTES)),
    "order_by_partition": ("partitions", "order_by_partition", (_BYTES, _WORDS, _WORDS)),
    "arrow_columns": ("arrow", "arrow_columns", (_INT, _WORDS, _INT, _WORDS)),
    "apply_rows": ("write", "apply_rows", (_WORDS, _WORDS, _WORDS, _WORDS)),
    "copy_rows": ("carry", "copy_rows", (_WORDS, _WORDS, _WORDS, *[_INT] * 4, _BOOLS, _WORDS, _WORDS)),
    "recover": ("free_rows", "recover", (_WORDS, _BYTES)),
    "load_acquire": ("memory", "load_word", (_INT,)),
    "store_release": ("memory", "store_word", (_INT, _WORD)),
    "compare_and_exchange": ("memory", "exchange_word", (_INT, _WORD, _WORD)),
    "search_rows": ("vectors", "search_rows", (_WORDS, _INT, _DOUBLE, _BYTES, _DOUBLES, _WORDS, _BYTES, _INT)),
    "mark_slots": ("vectors", "mark_slots", (_WORDS, *[_INT] * 4, _BYTES)),
    "log_row": ("served", "log_row", (_WORDS, _INT, _INT, _TEXT, _TEXT, _BYTES, _WORDS)),
    "log_record": ("served", "log_record", (_WORDS, types.Array(types.uint8, 1, "C", readonly=True))),
    "measure_records": ("served", "measure_records", (_WORDS, _INT, _INT, _WORDS)),
    "unpack_records": (
        "served",
        "unpack_records",
        (_WORDS, _INT, _INT, _WORDS, _MATRIX, _BYTES, _MATRIX, _BYTES, _BYTES, _BYTES),
    ),
    "list_keys": ("vectors", "list_keys", (_WORDS, _INT, _WORDS, _BYTES, _WORDS)),
}
READING = ("assemble_one", "read_one", "read_each", "read_many", "gather_values", "gather_texts", "write_decimals")
"""What reads use."""
APPLYING = ("apply_rows", "recover", "load_acquire", "store_release", "compare_and_exchange", "longest_id")
"""What applying the log uses, but for growth and upgrades."""


class Loading(NamedTuple):
    """How a kernel came into this process: compiled, or loaded from the cache, in how many seconds."""

    was_compiled: bool
    seconds: float


def __getattr__(name: str) -> Any:
    if name not in _KERNELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function, signature = _KERNELS[name]
    dispatcher = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    started = time.perf_counter()
    with announced() as compiling:
        dispatcher._cache = KernelCache(dispatcher.py_func, compiling)
        dispatcher.compile(signature)
    loading = Loading(bool(dispatcher.stats.cache_misses[signature]), time.perf_counter() - started)
    if loading.was_compiled:
        _log.info("kernel_compiled", kernel=name, seconds=round(loading.seconds, 2))
    _loadings[name] = loading
    entry_point = globals()[name] = getattr(dispatcher.overloads[signature], "entry_point", dispatcher)
    return entry_point


def load(names: tuple[str, ...] = tuple(_KERNELS)) -> dict[str, Loading]:
    """Load kernels now, all unless some are named, rather than when they are first used."""
    for name in names:
        globals().get(name) or __getattr__(name)
    return {name: _loadings[name] for name in names}


def described(loadings: Collection[Loading]) -> str:
    """How many kernels were compiled, how many were loaded, and how long that took."""
    parts = []
    for verb, was_compiled in (("compiled", True), ("loaded", False)):
        seconds = [loading.seconds for loading in loadings if loading.was_compiled is was_compiled]
        if seconds:
            parts.append(f"{len(seconds)} {verb} in {duration(sum(seconds))}")
    return ", ".join(parts)


_loadings: dict[str, Loading] = {}
