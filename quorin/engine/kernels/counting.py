"""How reads count: a word goes up, and one read in many is timed.

Counters lie in memory that other processes may look at; see :mod:`quorin.engine.counting.counters`. Nothing is
ordered: what is seen there is a moment old, and that is all that is promised.
"""

from __future__ import annotations

from quorin.engine.format.abi import D_COUNTERS, FIRST_BUCKET, TIME_BUCKETS
from quorin.engine.kernels.compiling import helper, inlined
from quorin.engine.kernels.memory import add_word, load_i64


@inlined
def counters_of(segment):
    """Where the counters of this process are."""
    return load_i64(segment[D_COUNTERS])


@helper
def count_time(buckets, total, elapsed_ns):
    """Count a time, given the addresses of its buckets and of the sum of all times."""
    add_word(total, elapsed_ns)
    bucket = 0
    rest = elapsed_ns >> FIRST_BUCKET
    while rest > 1:
        rest >>= 1
        bucket += 2
    if elapsed_ns >> FIRST_BUCKET > 0:
        bucket += (elapsed_ns >> (FIRST_BUCKET + bucket // 2 - 1)) & 1
    add_word(buckets + 8 * min(bucket, TIME_BUCKETS - 1), 1)
