"""The hash of :mod:`quorin.engine.format.hashing`, compiled. The two agree on every input; a property test holds them
together.
"""

from __future__ import annotations

import numpy as np

from quorin.engine.format.hashing import LENGTH_SECRET
from quorin.engine.kernels.compiling import inlined
from quorin.engine.kernels.memory import fold, load_u8, load_u32, load_u64

_LENGTH_SECRET = np.uint64(LENGTH_SECRET)


@inlined
def hash_id(address, count, k0, k1):
    """The 64-bit hash of ``count`` bytes at ``address`` under the seed ``(k0, k1)``; reads nothing beyond them."""
    h = np.uint64(0)
    start = address
    end = address + count
    while end - start > 16:
        h = fold(load_u64(start) ^ k0 ^ h, load_u64(start + 8) ^ k1)
        start += 16
    low = np.uint64(0)
    high = np.uint64(0)
    if count >= 16:
        low = load_u64(end - 16)
        high = load_u64(end - 8)
    elif count >= 8:
        low = load_u64(address)
        high = load_u64(end - 8)
    elif count >= 4:
        low = np.uint64(load_u32(address))
        high = np.uint64(load_u32(end - 4))
    elif count > 0:
        low = np.uint64(load_u8(address) | load_u8(address + (count >> 1)) << 8 | load_u8(end - 1) << 16)
    h = fold(low ^ k0 ^ h, high ^ k1)
    return fold(h ^ k1, (np.uint64(count) + _LENGTH_SECRET) ^ k0)
