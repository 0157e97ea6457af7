"""The compiled kernels: everything that reads or writes rows at full speed. The only package that imports numba.

Kernels take addresses, lengths and flat int64 arrays, and return codes; callers validate before and raise after. Import
this package late, in the function that needs it: it loads numba (about half a second the first time in a process).

Each name below is the compiled entry point of a kernel for one signature. Calling it costs a tenth of what the numba
dispatcher costs, which looks at the type of every argument first; with an argument of another type it raises
``TypeError``. Where a numba without ``entry_point`` is met, the dispatcher stands in. What is compiled is kept on disk,
see :mod:`quorin.kernels.cache`.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import types

from quorin.kernels.cache import own_cache

with own_cache():
    from quorin.kernels import arrow, carry, decimal, measure, memory, read, write

_WORDS = types.Array(types.int64, 1, "C")
_BYTES = types.Array(types.uint8, 1, "C")
_BOOLS = types.Array(types.boolean, 1, "C")
_FLOATS = types.Array(types.float32, 1, "C")
_INT, _WORD, _TEXT, _FLOAT = types.int64, types.uint64, types.unicode_type, types.float32


def _compiled(dispatcher: Any, *signature: Any) -> Any:
    dispatcher.compile(signature)
    return getattr(dispatcher.overloads[signature], "entry_point", dispatcher)


assemble_one = _compiled(read.read_one, _WORDS, _TEXT, _FLOATS)
read_one = _compiled(read.read_one, _WORDS, _TEXT, _BYTES)
read_each = _compiled(read.read_each, _WORDS, _TEXT, _BYTES)
read_many = _compiled(read.read_many, _WORDS, *[_INT] * 5, _BYTES, _BOOLS, _FLOAT)
gather_values = _compiled(read.gather_values, _INT, _INT, _INT, _WORDS, _INT)
gather_texts = _compiled(read.gather_texts, _INT, _INT, _INT, _WORDS, _WORDS, _INT)
event_times = _compiled(measure.event_times, _WORDS, _INT, _INT, _WORDS)
longest_id = _compiled(measure.longest_id, *[_INT] * 3)
mark_ids = _compiled(measure.mark_ids, _INT, _INT, _INT, _BYTES)
write_decimals = _compiled(decimal.write_decimals, _WORDS, _WORDS, _INT)
hash_one = _compiled(read.hash_one, _TEXT, _WORD, _WORD)

arrow_columns = _compiled(arrow.arrow_columns, _INT, _WORDS, _INT, _WORDS)
apply_rows = _compiled(write.apply_rows, _WORDS, _WORDS, *[_INT] * 10, _WORDS)
copy_rows = _compiled(carry.copy_rows, _WORDS, _WORDS, _WORDS, *[_INT] * 3, _WORDS)
recover = _compiled(write.recover, _WORDS, _BYTES)

load_acquire = _compiled(memory.load_word, _INT)
store_release = _compiled(memory.store_word, _INT, _WORD)
compare_and_exchange = _compiled(memory.exchange_word, _INT, _WORD, _WORD)


@functools.cache
def vector_kernels() -> tuple[Any, Any, Any]:
    """``search_rows``, ``mark_slots`` and ``list_keys`` of :mod:`quorin.kernels.vectors`, which most processes never
    need.
    """
    with own_cache():
        from quorin.kernels import vectors
    doubles = types.Array(types.float64, 1, "C")
    return (
        _compiled(vectors.search_rows, _WORDS, _INT, types.float64, _BYTES, doubles, _WORDS, _BYTES, _INT),
        _compiled(vectors.mark_slots, _WORDS, *[_INT] * 4, _BYTES),
        _compiled(vectors.list_keys, _WORDS, _INT, _WORDS, _BYTES, _WORDS),
    )
